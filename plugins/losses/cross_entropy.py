"""The plain loss: how surprised the model is by each next token."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from pipeline.plugin import IGNORED, Loss, ModelOutput, hookimpl


class CrossEntropy(Loss):
    """The negative log-probability of each target, optionally with label smoothing (Szegedy et al., 2016)."""

    name: ClassVar[str] = "cross_entropy"

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target's probability that is spread evenly over the vocabulary."""

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        nats = F.cross_entropy(
            output.logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return nats.view(targets.shape)


@hookimpl
def register_losses() -> list[type[Loss]]:
    return [CrossEntropy]
