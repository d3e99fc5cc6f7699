"""The index of the training text that batch samplers use, and a random permutation in constant memory."""

from __future__ import annotations

import hashlib
import math
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

_WORD = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15


class IndexedDocument(NamedTuple):
    """A document of the training text, or the part of it that is in the training split.

    Attributes:
        name: Its name in the corpus: the path below data/raw for a file, PATH#NUMBER for a record of a file.
        tokens: Its number of tokens, end-of-text included.
    """

    name: str
    tokens: int


@dataclass(frozen=True)
class Source:
    """A subset of the documents of the training text (or all of them), cut into windows.

    An epoch of a source has `windows` windows whose starts are T tokens apart. A window belongs to the source in
    which it starts. If a document ends inside a window, the window continues with the next document of the text,
    whatever its source.

    Attributes:
        name: Its name from `BatchSampler.sources`; "" for the whole text.
        context_length: T. A window has T + 1 tokens: T inputs and the target of the last input.
        shift: Whether the first window starts at a different token in each epoch (`train.shift_windows`).
        starts: The source consists of spans of adjacent documents; these are the spans' offsets in the text,
            ascending.
        before: For each span, the number of the source's tokens in the spans before it.
        tokens: The number of its tokens at which a window can start: all but the last T tokens of the text.
    """

    name: str
    context_length: int
    shift: bool
    starts: Sequence[int]
    before: Sequence[int]
    tokens: int

    @cached_property
    def windows(self) -> int:
        """The number of windows in an epoch. With `shift`, one window less, to make room for the shift."""
        windows = -(-self.tokens // self.context_length)
        return windows - 1 if self.shift and windows > 1 else windows

    def in_order(self, number: int, seed: int) -> int:
        """The offset in the text of window `number`, counted across epochs, in the order of the text."""
        epoch, number = divmod(number, self.windows)
        return self._offset(number, epoch, seed)

    def shuffled(self, number: int, seed: int) -> int:
        """The offset in the text of window `number`, counted across epochs, in a random order.

        The order depends on `seed` and the epoch. Each epoch has each window exactly once.
        """
        epoch, number = divmod(number, self.windows)
        return self._offset(permuted(number, self.windows, seed, epoch, self.name), epoch, seed)

    def _offset(self, number: int, epoch: int, seed: int) -> int:
        position = number * self.context_length
        if self.shift:
            slack = self.tokens - 1 - (self.windows - 1) * self.context_length
            position += _random_words(1, (seed, epoch, self.name, "start"))[0] % (slack + 1)
        span = bisect_right(self.before, position) - 1
        return self.starts[span] + position - self.before[span]


@dataclass(frozen=True)
class PackedSource(Source):
    """A subset of the documents whose windows are packs (`train.pack_documents`): each span is a window."""

    @classmethod
    def of(cls, name: str, context_length: int, starts: Sequence[int]) -> PackedSource:
        """The source whose windows begin at `starts`, ascending."""
        return cls(name, context_length, False, starts, (), len(starts) * context_length)

    @cached_property
    def windows(self) -> int:
        """The number of windows in an epoch."""
        return len(self.starts)

    def _offset(self, number: int, epoch: int, seed: int) -> int:
        return self.starts[number]


@dataclass(frozen=True)
class TokenIndex:
    """The training text.

    Attributes:
        tokens: Its number of tokens.
        context_length: T. The window at offset o has the tokens o … o + T, or fewer if it is a pack.
        text: The whole text as one source. An epoch of the run has as many windows as an epoch of this source.
        sources: The sources from `BatchSampler.sources`, by name.
        ends: If the windows are packs (`train.pack_documents`), the offset after the last token of each window of
            `text`; else None.
    """

    tokens: int
    context_length: int
    text: Source
    sources: Mapping[str, Source]
    ends: Sequence[int] | None = None

    def window_end(self, offset: int) -> int:
        """The offset after the last token of the window that begins at `offset`.

        Raises:
            IndexError: no window begins there.
        """
        if self.ends is None:
            if 0 <= offset < self.tokens - self.context_length:
                return offset + self.context_length + 1
        else:
            number = bisect_left(self.text.starts, offset)
            if number < len(self.ends) and self.text.starts[number] == offset:
                return self.ends[number]
        raise IndexError(f"no window begins at {offset}")


def permuted(number: int, size: int, *key: int | str) -> int:
    """The image of `number` under a pseudo-random permutation of 0 … size − 1; `key` selects the permutation.

    A generalised Feistel network over about √size × √size values, with cycle walking: it is applied until the
    result is below `size` (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002). It takes some
    microseconds and constant memory for any size.

    Raises:
        IndexError: `number` is not in 0 … size − 1.
    """
    if not 0 <= number < size:
        raise IndexError(f"{number} is not one of 0 … {size - 1}")
    across, down, rounds = _network(size, key)
    while True:
        high, low = divmod(number, across)
        for one, other in rounds:
            mixed = (high ^ one) * _ODD & _WORD
            low = (low + ((mixed ^ mixed >> 32) * _ODD >> 32)) % across
            mixed = (low ^ other) * _ODD & _WORD
            high = (high + ((mixed ^ mixed >> 32) * _ODD >> 32)) % down
        number = high * across + low
        if number < size:
            return number


@lru_cache(maxsize=1024)
def _network(size: int, key: tuple[int | str, ...]) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Two factors whose product is at least `size`, and two random round keys for each pair of rounds."""
    across = math.isqrt(size - 1) + 1
    # Four rounds suffice for a large set (Luby & Rackoff, 1988); a small set needs more rounds.
    words = _random_words(6 if size > 1000 else 12, key)
    return across, -(-size // across), tuple(zip(words[::2], words[1::2], strict=True))


@lru_cache(maxsize=1024)
def _random_words(count: int, key: tuple[int | str, ...]) -> tuple[int, ...]:
    """`count` pseudo-random 64-bit numbers derived from `key`."""
    return struct.unpack(f"<{count}Q", hashlib.shake_128(repr(key).encode()).digest(8 * count))
