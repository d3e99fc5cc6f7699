"""Min-p sampling."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Sampler, hookimpl


class MinP(Sampler):
    """Keeps tokens whose probability is at least p times the largest one (Nguyen et al., 2024)."""

    name: ClassVar[str] = "min_p"

    p: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The minimum probability of a token, relative to the largest probability."""

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        log_probabilities = logits.log_softmax(dim=-1)
        largest = log_probabilities.amax(dim=-1, keepdim=True)
        needed = largest + torch.tensor(self.p, dtype=logits.dtype, device=logits.device).log()
        return logits.masked_fill(log_probabilities < needed, -torch.inf)


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    return [MinP]
