"""Samplers: they change the distribution of the next token."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import torch


class Sampler(Component):
    """A change to the distribution of the next token. Samplers are applied in the order of
    `evaluate.samplers.use`."""

    @abstractmethod
    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Computes new logits; must not change its arguments.

        Args:
            logits: The logits of the next token [B, V]; −inf excludes a token.
            tokens: The ids so far [B, T].

        If the method has parameters of these names, it also receives them, and is called for one sequence at a time
        (B = 1):

        - `prompt_length`: the number of `tokens` that are the prompt;
        - `memory`: a dict for the sampler's state in this sequence, empty at the end of the prompt.

        Returns:
            Logits [B, V] with at least one finite value per row; −inf must stay −inf. A token is drawn once, after
            all samplers.
        """
