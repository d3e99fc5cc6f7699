"""Muon for the hidden matrices, AdamW for the rest, as one optimizer."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
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
    """Muon's Nesterov momentum."""
    ns_steps: Annotated[int, Field(gt=0, lt=100)] = 5
    """The number of Newton–Schulz iterations."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of the hidden matrices and an untied head, multiplied by the learning rate."""
    adamw_lr: Annotated[float, Field(gt=0)] = 1e-2
    """AdamW's peak learning rate, for all other parameters."""
    adamw_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay rate of the mean gradient."""
    adamw_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay rate of the mean squared gradient."""

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
        return Combined(muon, adamw)


class Orthogonalised(torch.optim.Optimizer):
    """Muon for matrices. Matrices of the same shape are orthogonalised in one batch.

    The matrices of a group are `parts` stacked matrices, each of which is orthogonalised separately: a fused
    projection of queries, keys and values is three (with fewer rows for keys and values in grouped-query
    attention).
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float, ns_steps: int
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:
        updates: dict[torch.Tensor, torch.Tensor] = {}
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in parameters]
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov momentum
            updates |= zip(parameters, ahead, strict=True)
        directions = _orthogonalised(updates, self.param_groups)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in directions:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(directions[parameter], alpha=-group["lr"])


def _orthogonalised(
    updates: dict[torch.Tensor, torch.Tensor], groups: list[dict[str, Any]]
) -> dict[torch.Tensor, torch.Tensor]:
    """Orthogonalises each update: all singular values become about 1, times √(rows / columns) for tall matrices."""
    batches: dict[Any, list[torch.Tensor]] = defaultdict(list)
    locations: dict[torch.Tensor, list[tuple[Any, int]]] = {}
    for group in groups:
        for parameter in group["params"]:
            if parameter not in updates:
                continue
            locations[parameter] = []
            for part in _split_parts(_full(updates[parameter]), group["parts"]):
                wide = part.T if part.shape[0] > part.shape[1] else part
                key = (wide.shape, wide.device, group["ns_steps"])
                locations[parameter].append((key, len(batches[key])))
                batches[key].append(wide)
    solved = {key: newton_schulz(torch.stack(parts), key[-1]) for key, parts in batches.items()}
    directions = {}
    for parameter, parts in locations.items():
        columns = parameter.shape[1]
        orthogonal = [solved[key][number] for key, number in parts]
        # For a tall matrix, its transpose was orthogonalised; parts of a fused projection are never tall.
        rows = parameter.shape[0] if len(orthogonal) == 1 else 0
        direction = torch.cat([each.T if rows > columns else each for each in orthogonal])
        direction = direction.to(parameter.dtype) * max(1.0, rows / columns) ** 0.5
        directions[parameter] = _sharded_like(parameter, direction)
    return directions


def _split_parts(matrix: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    """Splits a matrix into its parts: of three, the first is square, and the others share the remaining rows."""
    if parts == 1:
        return (matrix,)
    rows, columns = matrix.shape
    return matrix.split([columns, (rows - columns) // 2, (rows - columns) // 2])


_QUINTIC = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """[N, rows, columns ≥ rows] → approximately the nearest semi-orthogonal matrices, in bfloat16 (Jordan et al.,
    2024); in the matrices' dtype on a CPU without instructions for bfloat16, where it takes three times as long."""
    a, b, c = _QUINTIC
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if x.device.type != "cpu" or _cpu_multiplies_bf16():
        x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


@cache
def _cpu_multiplies_bf16() -> bool:
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


def _full(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor, gathered from all ranks if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _sharded_like(parameter: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """Shards a tensor that all ranks have in full, as `parameter` is sharded."""
    if not hasattr(parameter, "full_tensor"):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)


class Combined(torch.optim.Optimizer):
    """Several optimizers over different parameters as one. They share its state and parameter groups, so that
    saving, loading and schedules work as for any optimizer."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts
        self._sizes = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], defaults={})
        self._share()

    def _share(self) -> None:
        """Gives each part this optimizer's state and groups; needed again after `load_state_dict` replaced them."""
        groups = iter(self.param_groups)
        for part, size in zip(self._parts, self._sizes, strict=True):
            part.param_groups = [next(groups) for _ in range(size)]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self) -> None:
        for part in self._parts:
            part.step()


@hookimpl
def register_optimizers() -> list[type[Optimizer]]:
    return [Muon]
