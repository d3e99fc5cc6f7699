"""Exporters: file formats that other programs load."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pipeline.plugin.chat import ChatTemplate
    from pipeline.plugin.components.corpus import Message


@dataclass(frozen=True)
class ExportSource:
    """The trained model that an exporter writes.

    Attributes:
        config: The architecture: its `name`, the shape (vocab_size, context_length, n_layers, n_heads, emb_dim, …)
            and its own options, such as qkv_bias.
        weights: The state dict of the model, float32, on the CPU; the head without padding rows. They are
            the model's own tensors, not copies: an exporter must not write to them.
        model: The checkpoint as a module for tracing or compiling, ids [B, T] → logits [B, T, V] in float32; on the
            CPU, in eval mode.
        pattern: The pre-tokenization pattern of the tokenizer, a regular expression.
        ranks: The byte sequences of the vocabulary and their ids, which are also the merge order (as in tiktoken).
            Either every single byte is among them, or they are the only characters that the tokenizer can encode.
        special_tokens: The special tokens and their ids.
        end_of_text: The special token that ends a document.
        encode: text → ids; special tokens in the text are encoded as ordinary text.
        decode: ids → text.
        logits: ids [B, T] → the checkpoint's logits [B, T, V] in float32, without gradients.
        greedy: `greedy(ids, n)` → the n ids of the checkpoint's greedy continuation.
        text: A piece of held-out text, to verify the export with.
        chat: The chat template; None if the tokenizer has none.
        chat_ids: A conversation → its ids up to the point where the assistant begins to speak; only with `chat`. It
            raises `pipeline.core.errors.DataError` for a conversation that the template or the tokenizer refuses.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    model: torch.nn.Module
    pattern: str
    ranks: Mapping[bytes, int]
    special_tokens: Mapping[str, int]
    end_of_text: str
    encode: Callable[[str], np.ndarray[Any, Any]]
    decode: Callable[[Sequence[int]], str]
    logits: Callable[[torch.Tensor], torch.Tensor]
    greedy: Callable[[Sequence[int], int], list[int]]
    text: str
    chat: ChatTemplate | None
    chat_ids: Callable[[Sequence[Message]], list[int]]

    @property
    def end_of_turn(self) -> str:
        """The special token that ends the assistant's turn; without a chat template, the end of a document."""
        return (self.chat.end_of_turn if self.chat else "") or self.end_of_text

    @property
    def ends(self) -> list[int]:
        """The ids that end generation: the end of a turn and the end of a document, which may be the same."""
        return [self.special_tokens[name] for name in dict.fromkeys([self.end_of_turn, self.end_of_text])]

    def template_token(self, name: str, default: str) -> str:
        """A special token that programs keep by a name such as `eos_token`, and hand to the chat template as a
        variable of that name: the template's own if it reads the variable, else `default`."""
        if self.chat and name in self.chat.source:
            return self.chat.variables.get(name, "")
        return default


class Exporter(Component):
    """A file format that other programs load."""

    @abstractmethod
    def export(self, source: ExportSource, folder: Path) -> None:
        """Writes the export into the empty `folder`.

        Raises:
            ValueError: the format does not support this model; nothing is published. The message says why.
        """

    @abstractmethod
    def verify(self, source: ExportSource, folder: Path) -> dict[str, Any]:
        """Loads the export with the program it is meant for, and compares its results with the checkpoint's.

        Returns:
            The content of verification.json: the name of the `reader`, what was compared, and the differences
            found.

        Raises:
            ValueError: the export does not reproduce the checkpoint; nothing is published.
        """
