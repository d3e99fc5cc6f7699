"""The focal loss."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import IGNORED, Loss, ModelOutput, hookimpl


class Focal(Loss):
    """Cross-entropy weighted by (1 − p)^gamma, so that well-predicted tokens count less (Lin et al., 2017)."""

    name: ClassVar[str] = "focal"

    gamma: Annotated[float, Field(ge=0)] = 2.0
    """The focusing exponent: larger values reduce the weight of easy tokens more; 0 is cross-entropy."""

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        counted = targets != IGNORED
        picked = targets.clamp(min=0)[..., None]
        log_p = output.logits.log_softmax(dim=-1).gather(-1, picked)[..., 0]
        # expm1 computes 1 − p without cancellation; the lower bound keeps the power's gradient finite at p = 1.
        error = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        return torch.where(counted, -(error**self.gamma) * log_p, 0.0)


@hookimpl
def register_losses() -> list[type[Loss]]:
    return [Focal]
