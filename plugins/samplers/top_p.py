"""Top-p (nucleus) sampling."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Sampler, hookimpl


class TopP(Sampler):
    """Keeps the smallest set of most likely tokens whose probabilities add up to at least p (Holtzman et al.,
    2020)."""

    name: ClassVar[str] = "top_p"

    p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """The cumulative probability; the token that reaches it is kept."""

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if self.p == 1.0:
            return logits
        ordered, indices = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # cumulative probability of all more likely tokens
        kept = ordered.masked_fill((before >= self.p) & (before > 0), -torch.inf)
        return torch.full_like(logits, -torch.inf).scatter(-1, indices, kept)


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    return [TopP]
