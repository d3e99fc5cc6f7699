"""The unigram baseline on the held-out text. The other baseline, xz, is measured by the split stage."""

from __future__ import annotations

import math

import numpy as np

from pipeline.data.joined import AnyIds
from pipeline.data.tokenizer import Tokenizer
from pipeline.evaluate.breakdown import Counts


def unigram_bits_per_byte(train_counts: Counts, held_out: AnyIds, tokenizer: Tokenizer) -> float:
    """Bits per byte of a unigram model: token frequencies of the training text with add-one (Laplace) smoothing.

    As in the model's bits per byte, the first token is not a target, and special tokens are not counted.
    """
    counts = train_counts + 1.0
    nats = -np.log(counts / counts.sum())
    targets = held_out[1:]
    lengths = tokenizer.byte_lengths[targets]
    return float(nats[targets[lengths > 0]].sum() / math.log(2) / max(int(lengths.sum()), 1))
