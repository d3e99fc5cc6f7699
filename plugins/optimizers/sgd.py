"""The SGD optimizer."""

from collections.abc import Iterable
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Optimizer, hookimpl


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    name: ClassVar[str] = "sgd"
    works_on_shards: ClassVar[bool] = True

    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The momentum factor."""
    nesterov: bool = True
    """Whether to use Nesterov momentum (Nesterov, 1983); ignored without momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty of matrices: this factor times the weight is added to the gradient."""

    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.decay_groups(named_parameters, self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
        )


@hookimpl
def register_optimizers() -> list[type[Optimizer]]:
    return [SGD]
