"""A text that a person and the model write in turns, of which only what is new is read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.model.generate import Reader, SamplerLike, draw
from pipeline.model.gpt import GPT


class Conversation:
    """A text that grows at its end, and can be taken back. Keys and values of what was read stay in the cache."""

    def __init__(self, model: GPT) -> None:
        """Begins an empty text; the model is in eval mode."""
        self._reader = Reader(model)
        self._tokens = torch.zeros(1, 0, dtype=torch.long, device=model.head_weight.device)

    def __len__(self) -> int:
        """The text's tokens, read or not."""
        return self._tokens.shape[1]

    @property
    def unseen(self) -> int:
        """How many of the first tokens the model no longer sees."""
        return self._reader.begin

    def add(self, ids: Sequence[int]) -> None:
        """Adds ids to the text; they are read with the next draw."""
        new = torch.tensor([list(ids)], dtype=torch.long, device=self._tokens.device)
        self._tokens = torch.cat([self._tokens, new], dim=1)

    def back_to(self, length: int) -> None:
        """Takes back all but the first `length` tokens."""
        self._reader.back_to(length)
        self._tokens = self._tokens[:, :length]

    @torch.inference_mode()
    def draw(self, samplers: Sequence[SamplerLike], generator: torch.Generator | None) -> int:
        """Draws the id that follows the text, which is not empty, and adds it; see `generate` for the arguments.

        The samplers are given the tokens that the model sees.
        """
        logits = self._reader(self._tokens)
        new = draw(logits, self._tokens[:, self.unseen :], samplers, generator)
        self._tokens = torch.cat([self._tokens, new[:, None]], dim=1)
        return int(new)
