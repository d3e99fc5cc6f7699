"""Muon for the hidden matrices, AdamW for the rest, as one optimizer."""

from collections import defaultdict
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
        fused, matrices, decayed, undecayed = [], [], [], []
        for name, parameter in named_parameters:
            if parameter.ndim != 2 or "embedding" in name:
                undecayed.append(parameter)
            elif name == "head.weight":
                decayed.append(parameter)
            else:
                (fused if name.endswith("qkv.weight") else matrices).append(parameter)
        if not fused and not matrices:
            raise ValueError("muon needs at least one hidden matrix")
        hidden = [{"params": fused, "parts": 3}, {"params": matrices, "parts": 1}]
        muon = Orthogonalised(
            [group for group in hidden if group["params"]],
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


class Orthogonalised(torch.optim.Optimizer):
    """Muon over matrices; those of one shape are orthogonalised together.

    A group's matrices consist of `parts` matrices, one above the other, of which each is treated as its own: a
    fused projection for queries, keys and values is three (of which those of keys and values may be lower).
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float, ns_steps: int
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:  # as a part of `Together`, which takes the closure
        updates: dict[torch.Tensor, torch.Tensor] = {}
        for group in self.param_groups:
            held = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in held:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in held]
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in held]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov's look ahead
            updates |= zip(held, ahead, strict=True)
        directions = _orthogonalised(updates, self.param_groups)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in directions:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(directions[parameter], alpha=-group["lr"])


def _orthogonalised(
    updates: dict[torch.Tensor, torch.Tensor], groups: list[dict[str, Any]]
) -> dict[torch.Tensor, torch.Tensor]:
    """Each update with all its singular values near 1, times √(rows / columns) where it has more rows."""
    alike: dict[Any, list[torch.Tensor]] = defaultdict(list)
    places: dict[torch.Tensor, list[tuple[Any, int]]] = {}
    for group in groups:
        for parameter in group["params"]:
            if parameter not in updates:
                continue
            places[parameter] = []
            for part in _apart(_whole(updates[parameter]), group["parts"]):
                wide = part.T if part.shape[0] > part.shape[1] else part
                key = (wide.shape, wide.device, group["ns_steps"])
                places[parameter].append((key, len(alike[key])))
                alike[key].append(wide)
    solved = {key: newton_schulz(torch.stack(parts), key[-1]) for key, parts in alike.items()}
    directions = {}
    for parameter, parts in places.items():
        columns = parameter.shape[1]
        found = [solved[key][number] for key, number in parts]
        # Of a tall part, the transpose was solved; queries, keys and values are never tall.
        rows = parameter.shape[0] if len(found) == 1 else 0
        direction = torch.cat([each.T if rows > columns else each for each in found])
        direction = direction.to(parameter.dtype) * max(1.0, rows / columns) ** 0.5
        directions[parameter] = _shared_as(parameter, direction)
    return directions


def _apart(matrix: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    """A matrix's parts: the first of three is square, and the other two share the remaining rows."""
    if parts == 1:
        return (matrix,)
    rows, columns = matrix.shape
    return matrix.split([columns, (rows - columns) // 2, (rows - columns) // 2])


_QUINTIC = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """[N, rows, columns ≥ rows] → in bfloat16, about the nearest matrices whose singular values are all 1."""
    a, b, c = _QUINTIC
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or the whole of one of which each process holds a share."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _shared_as(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A tensor that every process has, laid out as the parameter is."""
    if not hasattr(parameter, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


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
