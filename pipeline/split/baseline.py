"""A baseline for the models: xz's bits per byte on each held-out split."""

from __future__ import annotations

import lzma
from collections.abc import Mapping

from pipeline.data.joined import AnyIds, Ids
from pipeline.data.tokenizer import Tokenizer

_XZ_BYTES = 4 << 20
"""The bytes that xz reads from the end of train, and from each held-out split: it takes a second per MiB."""
_AT_ONCE = 1 << 16


def xz_bits_per_byte(ids: Mapping[str, AnyIds], tokenizer: Tokenizer) -> dict[str, float]:
    """For each held-out split, the bits per byte that `xz -9e` needs for its text after the training text.

    Args:
        ids: The ids of each split.
        tokenizer: Their tokenizer.
    """
    front = _text(ids["train"][-_XZ_BYTES:], tokenizer)[-_XZ_BYTES:]
    alone = _xz(front)
    found = {}
    for split in ids:
        if split != "train":
            text = _text(ids[split][:_XZ_BYTES], tokenizer)[:_XZ_BYTES]
            found[split] = 8 * (_xz(front + text) - alone) / max(len(text), 1)
    return found


def _text(ids: Ids, tokenizer: Tokenizer) -> bytes:
    return tokenizer.decode_bytes(ids[tokenizer.byte_lengths[ids] > 0])


def _xz(data: bytes) -> int:
    # A dictionary of the text's size finds the same matches as the preset's, for which xz allocates 64 MiB.
    window = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": max(len(data), 4096)}
    compressor, size = lzma.LZMACompressor(filters=[window]), 0
    for start in range(0, len(data), _AT_ONCE):  # in parts, so that Ctrl-C need not wait for the whole
        size += len(compressor.compress(data[start : start + _AT_ONCE]))
    return size + len(compressor.flush())
