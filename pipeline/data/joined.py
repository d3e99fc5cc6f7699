"""Token ids of several files as one sequence, read only where they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np

from pipeline.core.errors import DataError

Ids = np.ndarray[tuple[int], np.dtype[Any]]

_OPEN_FILES = 256
"""The number of files that are mapped into memory at a time."""


def parts(bounds: np.ndarray[Any, Any], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Divides the range start … end−1 at `bounds`, ascending, from 0.

    Yields:
        The index i of a part, and the range of it that is inside: counted from bounds[i].
    """
    part = int(np.searchsorted(bounds, start, side="right")) - 1
    while start < end:
        while int(bounds[part + 1]) <= start:
            part += 1
        until = min(end, int(bounds[part + 1]))
        yield part, start - int(bounds[part]), until - int(bounds[part])
        start = until


def check_ids(ids: Ids, vocab_size: int, what: str, fix: str) -> None:
    """Raises DataError if an id is not in the vocabulary; `what` begins the message, and `fix` ends it."""
    if ids.size and (largest := int(ids.max())) >= vocab_size:
        raise DataError(f"{what} holds token id {largest}, but the vocabulary has {vocab_size:,}: {fix}")


class LazyIds(ABC):
    """A sequence of ids [tokens] that are read when they are asked for. A slice is an array in memory."""

    dtype: np.dtype[Any]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(self, start: int, end: int) -> list[Ids]:
        """The ids start … end−1, in parts."""

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Ids: ...
    def __getitem__(self, index: int | slice) -> int | Ids:
        if not isinstance(index, slice):
            place = range(len(self))[index]
            return int(self[place : place + 1][0])
        start, end, step = index.indices(len(self))
        if step < 0:
            return np.asarray(self)[index]
        found = self._read(start, end)
        joined = found[0] if len(found) == 1 else np.concatenate([np.empty(0, self.dtype), *found])
        return joined[::step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Ids:
        return self[:].astype(dtype or self.dtype)


class JoinedIds(LazyIds):
    """The ids of consecutive files."""

    def __init__(self, files: Sequence[Path | None], sizes: Sequence[int], dtype: np.dtype[Any]) -> None:
        """Files of raw ids, None for one that is all ones; the number of tokens in each; the type of an id."""
        self.dtype = dtype
        self._bounds = np.cumsum([0, *sizes], dtype=np.int64)

        @lru_cache(_OPEN_FILES)
        def file(number: int) -> Ids:
            path = files[number]
            if path is None:
                return np.broadcast_to(dtype.type(1), (sizes[number],))
            return np.memmap(path, dtype=dtype, mode="r", shape=(sizes[number],)).view(np.ndarray)

        self._file = file

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def _read(self, start: int, end: int) -> list[Ids]:
        return [self._file(number)[first:last] for number, first, last in parts(self._bounds, start, end)]


Segments = np.ndarray[tuple[int, int], np.dtype[np.int64]]
"""Segments of a sequence [2, n + 1]: for each one its offset in the sequence that they form, and its start in the
sequence from which they are taken. The last column has the length of the former, and 0."""


class SegmentedIds(LazyIds):
    """Segments of ids, one after the other."""

    def __init__(self, ids: AnyIds, segments: Segments) -> None:
        self.dtype, self._ids, self._segments = ids.dtype, ids, segments

    def __len__(self) -> int:
        return int(self._segments[0, -1])

    def _read(self, start: int, end: int) -> list[Ids]:
        offsets, starts = self._segments
        ranges = parts(offsets, start, end)
        return [self._ids[starts[number] + first : starts[number] + last] for number, first, last in ranges]


AnyIds = Ids | LazyIds
"""Token ids [tokens], in memory or in files; a slice is an array."""
