"""The training split of a large corpus: a list of segments of the tokens, in place of a copy."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from pipeline.data.joined import Ids, Segments
from pipeline.data.segments import SEGMENTS
from pipeline.data.token_writer import Counts
from pipeline.data.tokens import TokenFolder

_AT_ONCE, _MOST_WAITING = 1 << 18, 1 << 12


class SegmentWriter:
    """Collects the token ranges of the training split, 32 bytes of memory for each range.

    Attributes:
        documents: The number of documents.
    """

    def __init__(self) -> None:
        self.documents = 0
        self._starts, self._ends = array("q"), array("q")

    def add(self, start: int, end: int) -> None:
        """Appends a document, the tokens start … end−1."""
        if start == end:
            return
        self.documents += 1
        if self._ends and self._ends[-1] == start:
            self._ends[-1] = end
        else:
            self._starts.append(start)
            self._ends.append(end)

    def write(self, folder: Path) -> Segments:
        """Writes train.segments.npy: see `Segments`."""
        table = np.zeros((2, len(self._starts) + 1), np.int64)
        starts, ends = (np.frombuffer(each, np.int64) for each in (self._starts, self._ends))
        np.subtract(ends, starts, out=table[0, 1:])
        np.cumsum(table[0, 1:], out=table[0, 1:])
        table[1, :-1] = starts
        np.save(folder / SEGMENTS, table)
        return table

    def learnt(self, tokens: TokenFolder) -> int:
        """The number of tokens in the segments that are learnt."""
        blocks = (
            block
            for start, end in zip(self._starts, self._ends, strict=True)
            for block in tokens.masked_blocks("tokens", start, end)
        )
        return sum(len(ids) if learn is None else int(np.count_nonzero(learn)) for ids, learn in blocks)

    def counts(self, tokens: TokenFolder) -> Counts:
        """How often each id occurs in the segments [V]: only the tokens between the segments are read."""
        counts = tokens.counts("tokens")
        total = int(counts.sum())
        waiting: list[Ids] = []
        size = 0
        for start, end in zip([0, *self._ends], [*self._starts, total], strict=True):
            for ids in tokens.blocks("tokens", start, end):
                waiting.append(ids)
                size += len(ids)
                if (
                    size >= _AT_ONCE or len(waiting) >= _MOST_WAITING
                ):  # one pass over many, because each pass costs O(V)
                    counts -= np.bincount(np.concatenate(waiting), minlength=len(counts))
                    waiting, size = [], 0
        if waiting:
            counts -= np.bincount(np.concatenate(waiting), minlength=len(counts))
        return counts
