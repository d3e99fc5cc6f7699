"""What is to be beaten, and depends in the split alone: xz's bits per byte on each held-out text."""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids, smallest_dtype

_XZ_BYTES = 4 << 20
"""xz reads this much of the training text's end and this much of each held-out text: it takes a second a MiB."""


def xz_bits_per_byte(
    folder: Path, files: Mapping[str, Mapping[str, int]], tokenizer: Tokenizer
) -> dict[str, float]:
    """By split, the bits per byte that `xz -9e` needs for the text when it has read the training text before.

    Args:
        folder: Where train.bin, val.bin and test.bin lie.
        files: The `tokens` of each split.
        tokenizer: Of their ids.
    """
    dtype = smallest_dtype(tokenizer.vocab_size)

    def ids(split: str) -> Ids:
        return np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r", shape=(files[split]["tokens"],))

    front = _text(ids("train")[-_XZ_BYTES:], tokenizer)[-_XZ_BYTES:]
    alone = _xz(front)
    found = {}
    for split in files:
        if split != "train":
            text = _text(ids(split)[:_XZ_BYTES], tokenizer)[:_XZ_BYTES]
            found[split] = 8 * (_xz(front + text) - alone) / max(len(text), 1)
    return found


def _text(ids: Ids, tokenizer: Tokenizer) -> bytes:
    return tokenizer.decode_bytes(ids[tokenizer.byte_lengths[ids] > 0])


def _xz(data: bytes) -> int:
    # The preset's window of 64 MiB would be laid out for any text: one of the text's length finds the same.
    window = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": max(len(data), 4096)}
    return len(lzma.compress(data, filters=[window]))
