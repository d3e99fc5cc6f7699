"""What is to be beaten: a unigram model's bits per byte on the same held-out text (split measures xz's)."""

from __future__ import annotations

import math

import numpy as np

from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids
from pipeline.evaluate.breakdown import Counts


def unigram_bits_per_byte(train_counts: Counts, held_out: Ids, tokenizer: Tokenizer) -> float:
    """Bits per byte of each held-out token's frequency in training, every token counted once more (Laplace).

    The first token is no target and special tokens are no text, as in the model's own number.
    """
    counts = train_counts + 1.0
    nats = -np.log(counts / counts.sum())
    targets = held_out[1:]
    lengths = tokenizer.byte_lengths[targets]
    return float(nats[targets[lengths > 0]].sum() / math.log(2) / max(int(lengths.sum()), 1))
