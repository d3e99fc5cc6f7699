"""Top-k sampling."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Sampler, hookimpl


class TopK(Sampler):
    """Keeps the k most likely tokens (Fan et al., 2018)."""

    name: ClassVar[str] = "top_k"

    k: Annotated[int, Field(gt=0)] = 40
    """The number of tokens to keep; all of them if the vocabulary is smaller."""

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        kept = logits.topk(min(self.k, logits.shape[-1]), dim=-1)
        return torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    return [TopK]
