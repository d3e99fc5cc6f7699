"""What is to be beaten: a unigram model's and xz's bits per byte on the same held-out text."""

from __future__ import annotations

import lzma
import math

import numpy as np

from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids
from pipeline.evaluate.breakdown import Counts

_XZ_BYTES = 4 << 20
"""xz reads this much of the training text's end and this much of the held-out text: it takes a second a MiB."""


def unigram_bits_per_byte(train_counts: Counts, held_out: Ids, tokenizer: Tokenizer) -> float:
    """Bits per byte of each held-out token's frequency in training, every token counted once more (Laplace).

    The first token is no target and special tokens are no text, as in the model's own number.
    """
    counts = train_counts + 1.0
    nats = -np.log(counts / counts.sum())
    targets = held_out[1:]
    lengths = tokenizer.byte_lengths[targets]
    return float(nats[targets[lengths > 0]].sum() / math.log(2) / max(int(lengths.sum()), 1))


def xz_bits_per_byte(train: Ids, held_out: Ids, tokenizer: Tokenizer) -> float:
    """Bits per byte that `xz -9e` needs for the held-out text when it has read the training text before."""
    front = _text(train[-_XZ_BYTES:], tokenizer)[-_XZ_BYTES:]
    text = _text(held_out[:_XZ_BYTES], tokenizer)[:_XZ_BYTES]
    return 8 * (_xz(front + text) - _xz(front)) / max(len(text), 1)


def _text(ids: Ids, tokenizer: Tokenizer) -> bytes:
    return tokenizer.decode_bytes(ids[tokenizer.byte_lengths[ids] > 0])


def _xz(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
