"""Temperature."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Sampler, hookimpl


class Temperature(Sampler):
    """Divides the logits by a temperature: below 1 sharpens the distribution, above 1 flattens it."""

    name: ClassVar[str] = "temperature"

    value: Annotated[float, Field(ge=0)] = 0.8
    """The temperature; 0 keeps only the most likely token."""

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if self.value > 0:
            # Relative to the largest logit, so that a tiny temperature cannot overflow: the largest stay 0.
            below = logits - logits.amax(dim=-1, keepdim=True)
            return torch.where(below == 0, below, below / self.value)
        likeliest = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, likeliest, 0.0)


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    return [Temperature]
