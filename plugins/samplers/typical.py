"""Locally typical sampling."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Sampler, hookimpl


class Typical(Sampler):
    """Keeps the tokens whose information content is closest to the entropy, up to the cumulative probability p
    (Meister et al., 2023)."""

    name: ClassVar[str] = "typical"

    p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """The cumulative probability; the token that reaches it is kept."""

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if self.p == 1.0:
            return logits
        log_p = logits.log_softmax(dim=-1)
        p = log_p.exp()
        expected = -(p * log_p.masked_fill(p == 0, 0.0)).sum(dim=-1, keepdim=True)
        order = (-log_p - expected).abs().argsort(dim=-1, stable=True)
        likely = p.gather(-1, order)
        before = likely.cumsum(dim=-1) - likely  # cumulative probability of all more typical tokens
        ruled_out = (before >= self.p) & (before > 0)
        return logits.masked_fill(torch.zeros_like(ruled_out).scatter(-1, order, ruled_out), -torch.inf)


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    return [Typical]
