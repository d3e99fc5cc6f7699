"""Repetition penalty."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Sampler, hookimpl


class RepetitionPenalty(Sampler):
    """Makes tokens that occurred earlier in the text less likely (Keskar et al., 2019)."""

    name: ClassVar[str] = "repetition_penalty"

    penalty: Annotated[float, Field(ge=0.001, le=1000)] = 1.2
    """Positive logits of earlier tokens are divided by it, negative ones multiplied; 1 has no effect."""

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        seen = logits.gather(-1, tokens)
        return logits.scatter(-1, tokens, torch.where(seen > 0, seen / self.penalty, seen * self.penalty))


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    return [RepetitionPenalty]
