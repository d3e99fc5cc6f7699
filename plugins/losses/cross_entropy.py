"""Cross-entropy."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Loss, ModelOutput, hookimpl


class CrossEntropy(Loss):
    """The negative log-likelihood of each target, with optional label smoothing and z-loss."""

    name: ClassVar[str] = "cross_entropy"

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The probability mass spread evenly over the vocabulary (Szegedy et al., 2016)."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """The weight of the z-loss log² Z, which keeps logits from drifting (Chowdhery et al., 2022: 1e-4)."""

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        return output.cross_entropy(targets, label_smoothing=self.label_smoothing, z_loss=self.z_loss)


@hookimpl
def register_losses() -> list[type[Loss]]:
    return [CrossEntropy]
