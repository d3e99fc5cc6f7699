"""The unigram baseline on the held-out text. The other baseline, xz, is measured by the split stage."""

from __future__ import annotations

import math

import numpy as np

from pipeline.data.masked import MaskedIds
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.breakdown import Counts

_AT_ONCE = 1 << 20


def learnt_counts(splits: TokenFolder) -> Counts:
    """How often each id is learnt in the training text [V]."""
    if not splits.has_mask("train"):
        return splits.counts("train")
    train = splits.masked("train")
    counts = np.zeros(splits.tokenizer.vocab_size, np.int64)
    for start in range(0, len(train), _AT_ONCE):
        end = min(start + _AT_ONCE, len(train))
        counts += np.bincount(train.ids[start:end][train.learnt(start, end)], minlength=len(counts))
    return counts


def unigram_bits_per_byte(train_counts: Counts, held_out: MaskedIds, tokenizer: Tokenizer) -> float:
    """Bits per byte of a unigram model: token frequencies of the training text with add-one (Laplace) smoothing.

    As in the model's bits per byte, the first token and what is only read are no targets, and special tokens are
    not counted.
    """
    counts = train_counts + 1.0
    nats = -np.log(counts / counts.sum())
    targets = held_out.ids[1:][held_out.learnt(1, len(held_out))]
    lengths = tokenizer.byte_lengths[targets]
    return float(nats[targets[lengths > 0]].sum() / math.log(2) / max(int(lengths.sum()), 1))
