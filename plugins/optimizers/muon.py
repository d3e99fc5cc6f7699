"""Muon for the hidden matrices, AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Optimizer, hookimpl


class Muon(Optimizer):
    """Momentum orthogonalised by Newton–Schulz steps (Jordan et al., 2024) for the hidden matrices.

    Embeddings, head, norms and biases go to AdamW.
    """

    name: ClassVar[str] = "muon"
    works_on_shards: ClassVar[bool] = True

    lr: Annotated[float, Field(gt=0)] = 0.02
    """Peak learning rate of the hidden matrices."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Muon's momentum (Nesterov's form)."""
    ns_steps: Annotated[int, Field(gt=0, lt=100)] = 5
    """Newton–Schulz steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decay of the hidden matrices and of an untied head, per step and unit of learning rate."""
    adamw_lr: Annotated[float, Field(gt=0)] = 1e-2
    """AdamW's peak learning rate, for everything else."""
    adamw_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's memory of the mean gradient."""
    adamw_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's memory of the mean squared gradient."""

    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        matrices, decayed, undecayed = [], [], []
        for name, parameter in named_parameters:
            if parameter.ndim != 2 or "embedding" in name:
                undecayed.append(parameter)
            else:
                (decayed if name == "head.weight" else matrices).append(parameter)
        if not matrices:
            raise ValueError("muon needs at least one hidden matrix")
        muon = torch.optim.Muon(
            matrices,
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            ns_steps=self.ns_steps,
        )
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.adamw_lr,
            betas=(self.adamw_beta1, self.adamw_beta2),
            fused=True,
        )
        return Together(muon, adamw)


class Together(torch.optim.Optimizer):
    """Several optimizers, each over its own parameters, as one: they share its state and its groups, so it
    saves, loads and is scheduled like any other."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts
        self._sizes = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], defaults={})
        self._share()

    def _share(self) -> None:
        """Lets each part work on this optimizer's state and groups, which loading replaces."""
        groups = iter(self.param_groups)
        for part, size in zip(self._parts, self._sizes, strict=True):
            part.param_groups = [next(groups) for _ in range(size)]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


@hookimpl
def register_optimizers() -> list[type[Optimizer]]:
    return [Muon]
