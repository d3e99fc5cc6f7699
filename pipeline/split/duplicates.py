"""Finds documents of one split whose text is also in a split that is held out more strictly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.index import SPLITS
from pipeline.data.tokens import TokenFolder
from pipeline.split.assignment import Places, names_of

MOST_LISTED = 1000
"""The number of duplicates that are listed; the others are counted."""
_TRAIN, _VAL, _TEST = range(3)

Digests = np.ndarray[tuple[int], np.dtype[np.bytes_]]


@dataclass(frozen=True)
class Duplicate:
    """A document with the same text, apart from white space, as one in another split.

    Attributes:
        split, name: The document, in train or val.
        kept_split, kept_name: The document to keep, in val or test.
    """

    split: str
    name: str
    kept_split: str
    kept_name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.split}) = {self.kept_name} ({self.kept_split})"


@dataclass(frozen=True)
class Duplicates:
    """The documents of train whose text is also in val or test, and those of val whose text is also in test.

    Attributes:
        found: Whether each document is one of them [documents].
        listed: The first `MOST_LISTED` of them.
    """

    found: np.ndarray[tuple[int], np.dtype[np.bool_]]
    listed: list[Duplicate]

    def __len__(self) -> int:
        return int(self.found.sum())


def find_duplicates(tokens: TokenFolder, places: Places) -> Duplicates:
    """Compares the digests of the documents' texts, in 17 bytes of memory per held-out document."""
    held_out = {place: _sorted_digests(tokens, places, place) for place in (_VAL, _TEST)}
    found = np.zeros(len(places), np.bool_)
    for start, digests in _digests(tokens):
        place = places[start : start + len(digests)]
        twins = (place <= _VAL) & _is_in(digests, held_out[_TEST])
        twins |= (place == _TRAIN) & _is_in(digests, held_out[_VAL])
        found[start : start + len(digests)] = twins
    return Duplicates(found, _listed(tokens, places, np.flatnonzero(found)[:MOST_LISTED]))


def _digests(tokens: TokenFolder) -> Iterator[tuple[int, Digests]]:
    """The digests of all documents in blocks, and the number of documents before each block."""
    start = 0
    for records in tokens.index("tokens").records():
        yield start, records["digest"]
        start += len(records)


def _sorted_digests(tokens: TokenFolder, places: Places, place: int) -> Digests:
    """The digests of a split's documents, sorted."""
    sorted_digests, count = np.empty(int((places == place).sum()), "S16"), 0
    for start, digests in _digests(tokens):
        chosen = digests[(places[start : start + len(digests)] == place) & (digests != b"")]
        sorted_digests[count : count + len(chosen)] = chosen
        count += len(chosen)
    sorted_digests = sorted_digests[:count]
    sorted_digests.sort()
    return sorted_digests


def _is_in(digests: Digests, sorted_digests: Digests) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each digest is one of the sorted ones."""
    if not len(sorted_digests):
        return np.zeros(len(digests), np.bool_)
    nearest = np.minimum(np.searchsorted(sorted_digests, digests), len(sorted_digests) - 1)
    return np.asarray(sorted_digests[nearest] == digests)


def _listed(tokens: TokenFolder, places: Places, numbers: np.ndarray[Any, Any]) -> list[Duplicate]:
    """The duplicates with these numbers, each with the document to keep: the first one in test, else in val."""
    if not len(numbers):
        return []
    digest_of: dict[int, bytes] = {}
    for start, digests in _digests(tokens):
        for number in numbers[(numbers >= start) & (numbers < start + len(digests))].tolist():
            digest_of[number] = bytes(digests[number - start])
    wanted = np.array(sorted(set(digest_of.values())), "S16")
    kept: dict[bytes, int] = {}
    for start, digests in _digests(tokens):
        place = places[start : start + len(digests)]
        for number in np.flatnonzero((place >= _VAL) & (place <= _TEST) & _is_in(digests, wanted)).tolist():
            digest = bytes(digests[number])
            if digest not in kept or places[kept[digest]] < place[number]:
                kept[digest] = start + number
    names = names_of(tokens, sorted({*digest_of, *kept.values()}))
    return [
        Duplicate(SPLITS[places[number]], names[number], SPLITS[places[kept[digest]]], names[kept[digest]])
        for number, digest in digest_of.items()
    ]
