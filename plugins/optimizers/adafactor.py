"""Adafactor: second moments in the memory of rows and columns."""

from collections.abc import Iterable
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Optimizer, hookimpl


class Adafactor(Optimizer):
    """Adaptive steps whose second moments are kept by row and column (Shazeer & Stern, 2018)."""

    name: ClassVar[str] = "adafactor"

    lr: Annotated[float, Field(gt=0)] = 0.02
    """Peak learning rate, relative to each weight's own size."""
    beta2_decay: Annotated[float, Field(lt=0, ge=-1)] = -0.8
    """Exponent with which the memory of squared gradients grows longer."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest root mean square of an update."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a matrix that decays, per step and unit of learning rate."""

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
