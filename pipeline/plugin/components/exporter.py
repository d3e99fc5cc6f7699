"""Exporters: forms in which other programs load the model."""

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


@dataclass(frozen=True)
class ExportSource:
    """A trained model as an exporter sees it.

    Attributes:
        config: The architecture: its `name`, the shape (vocab_size, context_length, n_layers, n_heads, emb_dim, …)
            and its own options, such as qkv_bias.
        weights: The model's state dict, in float32 on the CPU; the head without its padding rows.
        model: The checkpoint as a module, ids [B, T] → logits [B, T, V] in float32: on the CPU, in eval mode, to be
            traced or compiled.
        pattern: The tokenizer's split pattern (a regular expression).
        ranks: The tokenizer's byte sequences and their ids, which are also the order of merging. They hold every
            single byte, or else are the only characters that the tokenizer knows.
        special_tokens: Special tokens and their ids.
        end_of_text: Which of the special tokens ends a document.
        encode: text → ids, special tokens' texts being ordinary text.
        decode: ids → text.
        logits: What `model` gives, without gradients: ids [B, T] → the checkpoint's logits [B, T, V] in float32.
        greedy: `greedy(ids, n)` → the n ids that the checkpoint continues with, greedily.
        text: A piece of held-out text to prove the export with.
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


class Exporter(Component):
    """A form in which other programs load the model."""

    @abstractmethod
    def export(self, source: ExportSource, folder: Path) -> None:
        """Writes the export into `folder`, which is empty.

        Raises:
            ValueError: this format has no form for such a model; nothing is published.
        """

    @abstractmethod
    def verify(self, source: ExportSource, folder: Path) -> dict[str, Any]:
        """Loads what was written with the program that will read it and holds it against the checkpoint.

        Returns:
            What was compared, with which reader and how far apart: it becomes verification.json.

        Raises:
            ValueError: the export does not reproduce the checkpoint; nothing is published.
        """
