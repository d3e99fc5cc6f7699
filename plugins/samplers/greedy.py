"""Greedy decoding."""

from typing import ClassVar

import torch

from pipeline.plugin import Sampler, hookimpl


class Greedy(Sampler):
    """Keeps only the most likely token."""

    name: ClassVar[str] = "greedy"

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        likeliest = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, likeliest, logits.gather(-1, likeliest))


@hookimpl
def register_samplers() -> list[type[Sampler]]:
    return [Greedy]
