"""The training text as a batch sampler sees it, and a permutation of any size in constant memory."""

from __future__ import annotations

import hashlib
import math
import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

_WORD = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15


class IndexedDocument(NamedTuple):
    """A document of the training text, or its part on that side of the split.

    Attributes:
        name: The name that the corpus gave it: of a file its path below data/raw, of a record in it PATH#NUMBER.
        tokens: Its tokens, end-of-text included.
    """

    name: str
    tokens: int


@dataclass(frozen=True)
class Source:
    """Some documents of the training text, or all of them, in windows.

    An epoch of a source is `windows` windows that begin T tokens apart. A window belongs to the source in which it
    begins; where a document ends inside it, it goes on with the one that follows in the text.

    Attributes:
        name: What `BatchSampler.sources` calls it; "" for the whole text.
        context_length: T. A window is T + 1 tokens: T inputs, and the target of the last one.
        shift: Whether each epoch begins its first window at another token (`train.shift_windows`).
        starts: Where in the text its runs of tokens begin: offsets, ascending.
        before: For each run, how many of the source's tokens lie in the runs before it.
        tokens: Its tokens in which a window can begin: the last T tokens of the text are not among them.
    """

    name: str
    context_length: int
    shift: bool
    starts: Sequence[int]
    before: Sequence[int]
    tokens: int

    @cached_property
    def windows(self) -> int:
        """Windows in an epoch. Where their beginning shifts, the last one of several is left out to make room."""
        windows = -(-self.tokens // self.context_length)
        return windows - 1 if self.shift and windows > 1 else windows

    def in_order(self, number: int, seed: int) -> int:
        """The offset of window `number`, counted over all epochs, in the order of the text."""
        epoch, number = divmod(number, self.windows)
        return self._offset(number, epoch, seed)

    def shuffled(self, number: int, seed: int) -> int:
        """The offset of window `number`, counted over all epochs, in an order that `seed` and the epoch decide.

        Each window comes once in an epoch.
        """
        epoch, number = divmod(number, self.windows)
        return self._offset(permuted(number, self.windows, seed, epoch, self.name), epoch, seed)

    def _offset(self, number: int, epoch: int, seed: int) -> int:
        place = number * self.context_length
        if self.shift:
            slack = self.tokens - 1 - (self.windows - 1) * self.context_length
            place += _random_words(1, (seed, epoch, self.name, "start"))[0] % (slack + 1)
        run = bisect_right(self.before, place) - 1
        return self.starts[run] + place - self.before[run]


@dataclass(frozen=True)
class TokenIndex:
    """The training text.

    Attributes:
        tokens: How many tokens it has.
        context_length: T: a window that begins at offset o holds the tokens o … o + T.
        text: The whole text as one source; an epoch of a run is as many windows as an epoch of this.
        sources: The sources that `BatchSampler.sources` makes of the documents, by name.
    """

    tokens: int
    context_length: int
    text: Source
    sources: Mapping[str, Source]


def permuted(number: int, size: int, *key: int | str) -> int:
    """Where a random permutation of 0 … size−1 puts `number`; `key` decides which permutation.

    A generalised Feistel network over about √size × √size, walked until it ends below `size` (Black & Rogaway,
    "Ciphers with arbitrary finite domains", 2002): some microseconds and constant memory, whatever the size.
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
    """Two factors whose product is `size` or a little more, and two random numbers for each pair of rounds."""
    across = math.isqrt(size - 1) + 1
    # Four rounds are a pseudo-random permutation of a large set (Luby & Rackoff, 1988); a small one needs more.
    words = _random_words(6 if size > 1000 else 12, key)
    return across, -(-size // across), tuple(zip(words[::2], words[1::2], strict=True))


@lru_cache(maxsize=1024)
def _random_words(count: int, key: tuple[int | str, ...]) -> tuple[int, ...]:
    """Random numbers of 64 bits that follow from `key`."""
    return struct.unpack(f"<{count}Q", hashlib.shake_128(repr(key).encode()).digest(8 * count))
