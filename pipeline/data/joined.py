"""Token ids of several files as one sequence, read only where they are asked for."""

from __future__ import annotations

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
    while start < end:
        part = int(np.searchsorted(bounds, start, side="right")) - 1
        until = min(end, int(bounds[part + 1]))
        yield part, start - int(bounds[part]), until - int(bounds[part])
        start = until


def check_ids(ids: Ids, vocab_size: int, what: str, fix: str) -> None:
    """Raises DataError if an id is not in the vocabulary; `what` begins the message, and `fix` ends it."""
    if ids.size and (largest := int(ids.max())) >= vocab_size:
        raise DataError(f"{what} holds token id {largest}, but the vocabulary has {vocab_size:,}: {fix}")


class JoinedIds:
    """The ids of consecutive files, as one sequence [tokens]. A slice is an array in memory."""

    def __init__(self, files: Sequence[Path], sizes: Sequence[int], dtype: np.dtype[Any]) -> None:
        """
        Args:
            files: The files of raw ids.
            sizes: The number of tokens in each.
            dtype: The type of an id.
        """
        self.dtype = dtype
        self._bounds = np.cumsum([0, *sizes], dtype=np.int64)

        @lru_cache(_OPEN_FILES)
        def file(number: int) -> Ids:
            return np.memmap(files[number], dtype=dtype, mode="r", shape=(sizes[number],)).view(np.ndarray)

        self._file = file

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Ids: ...
    def __getitem__(self, index: int | slice) -> int | Ids:
        if isinstance(index, slice):
            start, end, step = index.indices(len(self))
            return self._read(start, end)[::step] if step > 0 else np.asarray(self)[index]
        place = range(len(self))[index]
        return int(self._read(place, place + 1)[0])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Ids:
        return self._read(0, len(self)).astype(dtype or self.dtype)

    def _read(self, start: int, end: int) -> Ids:
        found = [self._file(number)[first:last] for number, first, last in parts(self._bounds, start, end)]
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty(0, self.dtype)


AnyIds = Ids | JoinedIds
"""Token ids [tokens], in memory or in files; a slice is an array."""
