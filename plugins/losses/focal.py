"""The focal loss: hard tokens count more."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import IGNORED, Loss, ModelOutput, hookimpl


class Focal(Loss):
    """Cross-entropy weighted by (1 − p)^gamma, so that well-predicted tokens count less (Lin et al., 2017)."""

    name: ClassVar[str] = "focal"

    gamma: Annotated[float, Field(ge=0)] = 2.0
    """How strongly the easy is discounted; 0 is plain cross-entropy."""

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        counted = targets != IGNORED
        picked = targets.clamp(min=0)[..., None]
        log_p = output.logits.log_softmax(dim=-1).gather(-1, picked)[..., 0]
        # 1 − p from log p without cancellation; its floor keeps the power's gradient finite where p is 1.
        missed = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        return torch.where(counted, -(missed**self.gamma) * log_p, 0.0)


@hookimpl
def register_losses() -> list[type[Loss]]:
    return [Focal]
