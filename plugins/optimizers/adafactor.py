"""The Adafactor optimizer."""

from collections.abc import Iterable
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Optimizer, hookimpl


class Adafactor(Optimizer):
    """Adafactor: adaptive steps with factored second moments, one per row and column (Shazeer & Stern, 2018)."""

    name: ClassVar[str] = "adafactor"

    lr: Annotated[float, Field(gt=0)] = 0.02
    """Peak learning rate, relative to the root mean square of each parameter."""
    beta2_decay: Annotated[float, Field(lt=0, ge=-1)] = -0.8
    """The decay rate of the second moments: β₂ = 1 − step^beta2_decay."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """The maximum root mean square of an update."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices, multiplied by the learning rate."""

    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(
            self.decay_groups(named_parameters, self.weight_decay),
            lr=self.lr,
            beta2_decay=self.beta2_decay,
            d=self.clip,
        )


@hookimpl
def register_optimizers() -> list[type[Optimizer]]:
    return [Adafactor]
