"""The Lion optimizer."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Optimizer, hookimpl


class Lion(Optimizer):
    """Lion: the sign of an interpolated momentum, with decoupled weight decay (Chen et al., 2023)."""

    name: ClassVar[str] = "lion"
    works_on_shards: ClassVar[bool] = True

    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate: a third to a tenth of AdamW's."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The weight of the momentum in the update."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """The decay rate of the momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.3
    """Decoupled weight decay of matrices, multiplied by the learning rate."""

    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        return SignMomentum(
            self.decay_groups(named_parameters, self.weight_decay), lr=self.lr, betas=(self.beta1, self.beta2)
        )


class SignMomentum(torch.optim.Optimizer):
    """Algorithm 2 of the Lion paper as a torch optimizer."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                direction = momentum.lerp(parameter.grad, 1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - beta2)


@hookimpl
def register_optimizers() -> list[type[Optimizer]]:
    return [Lion]
