"""The training split of a large corpus: segments of the tokens in another folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.errors import DataError
from pipeline.data.index import IndexEntry
from pipeline.data.joined import AnyIds, SegmentedIds, Segments
from pipeline.data.npy import npy_errors

if TYPE_CHECKING:
    from pipeline.data.tokens import TokenFolder

SEGMENTS = "train.segments.npy"
_AT_ONCE = 1 << 18


class SegmentFile:
    """Reads train.segments.npy. `fix` ends the error messages.

    Attributes:
        source: The folder of which its tokens are segments.

    Raises:
        DataError: the file is missing or damaged, or its segments are not `tokens` tokens of the source.
    """

    def __init__(self, path: Path, source: TokenFolder, tokens: int, fix: str) -> None:
        self.source = source
        if not path.is_file():
            raise DataError(f"{path} is missing: {fix}")
        with npy_errors(path, fix):
            self._table: Segments = np.load(path, mmap_mode="r", allow_pickle=False)
        if not self._fits(tokens):
            raise DataError(
                f"{path} is damaged (it is no list of segments with {tokens:,} tokens of {source.folder}): {fix}"
            )

    def _fits(self, tokens: int) -> bool:
        """Whether the segments are ascending, without gaps in train, and within the source."""
        table = self._table
        if table.dtype != np.int64 or table.ndim != 2 or len(table) != 2 or table.shape[1] < 2:
            return False
        end = 0  # of the segment before
        for first in range(0, table.shape[1] - 1, _AT_ONCE):
            offsets, starts = np.array(table[:, first : first + _AT_ONCE + 1])
            sizes, starts = np.diff(offsets), starts[: len(offsets) - 1]
            ends = starts + sizes
            if (sizes <= 0).any() or starts[0] < end or (starts[1:] < ends[:-1]).any():
                return False
            end = int(ends[-1])
        return int(table[0, 0]) == 0 and int(table[0, -1]) == tokens and end <= len(self.source.ids("tokens"))

    @property
    def ids(self) -> AnyIds:
        """The ids of train [tokens]."""
        return SegmentedIds(self.source.ids("tokens"), self._table.view(np.ndarray))

    @property
    def learn(self) -> AnyIds:
        """Which tokens of train are learnt [tokens], uint8, if the source says it."""
        return SegmentedIds(self.source.masked("tokens").learn, self._table.view(np.ndarray))  # type: ignore[arg-type]

    def documents(self) -> Iterator[IndexEntry]:
        """The documents of train, or their parts in it; `bytes` is that of the whole document."""
        segments, last = self._each(), (-1, -1, -1)
        start, end, offset = next(segments, last)
        for entry in self.source.documents("tokens"):
            while 0 <= end <= entry.start:
                start, end, offset = next(segments, last)
            if start <= entry.start < end:
                tokens = min(entry.end, end) - entry.start
                yield replace(entry, start=offset + entry.start - start, tokens=tokens, split=None, digest=None)

    def _each(self) -> Iterator[tuple[int, int, int]]:
        """The first token of each segment, the one after its last, and its offset in train."""
        for first in range(0, self._table.shape[1] - 1, _AT_ONCE):
            offsets, starts = self._table[:, first : first + _AT_ONCE + 1].tolist()
            for number in range(len(offsets) - 1):
                yield starts[number], starts[number] + offsets[number + 1] - offsets[number], offsets[number]
