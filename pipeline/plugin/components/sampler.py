"""Samplers: changes to the distribution of the next token."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import torch


class Sampler(Component):
    """A change to the next token's distribution; samplers compose in the order they are listed."""

    @abstractmethod
    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """New logits.

        Args:
            logits: The next token's logits [B, V]; −inf means never.
            tokens: The ids so far [B, T].

        With a parameter of this name it is also given, and is then called for each sequence by itself (B is 1),

        - `prompt_length`: how many of `tokens` are the prompt;
        - `memory`: a dict of its own, empty when the prompt ends.

        Returns:
            Logits [B, V] with at least one finite value in each row. The core draws once, at the end.
        """
