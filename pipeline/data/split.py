"""Train, validation and test: by whole documents, or by position in the corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids, IndexEntry, TokenFolder

SIDES = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """A document, or what lies of it on one side of a cut."""

    side: str
    name: str
    ids: Ids
    text_bytes: int


def side_of(name: str, seed: int, val: float, test: float) -> str:
    """The side of a document: a function of its name and the seed alone, whatever other documents there are."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test:
        return "test"
    return "val" if place < test + val else "train"


def by_document(tokens: TokenFolder, seed: int, val: float, test: float) -> Iterator[Part]:
    """Every document, whole, on its side."""
    ids = tokens.ids("tokens")
    for entry in tokens.documents("tokens"):
        side = side_of(entry.name, seed, val, test)
        yield Part(side, entry.name, ids[entry.start : entry.start + entry.tokens], entry.bytes)


def by_position(tokens: TokenFolder, unit: str, val: float, test: float) -> Iterator[Part]:
    """The corpus in its order, cut in two places: train, then val, then test.

    `unit` "tokens" cuts between two tokens; "characters" cuts the text, so that the document at the cut is
    decoded and both its sides are tokenized anew, as if the text had been cut first.
    """
    ids, tokenizer = tokens.ids("tokens"), tokens.tokenizer
    measure = _characters if unit == "characters" else _tokens
    total = sum(measure(ids, entry, tokenizer) for entry in tokens.documents("tokens"))
    # Rounded first: in floating point 1 − 0.05 − 0.05 is a little less than 0.9.
    cuts = [int(round(total * share, 6)) for share in (1 - val - test, 1 - test)]
    position = 0
    for entry in tokens.documents("tokens"):
        length = measure(ids, entry, tokenizer)
        inside = [min(max(cut - position, 0), length) for cut in cuts]
        position += length
        own = ids[entry.start : entry.start + entry.tokens]
        if inside in ([0, 0], [0, length], [length, length]):  # no cut goes through this document
            yield Part(SIDES[inside.count(0)], entry.name, own, entry.bytes)
        elif unit == "tokens":
            yield from _cut_tokens(own, inside, entry, tokenizer)
        else:
            yield from _cut_text(own, inside, entry, tokenizer)


def _tokens(ids: Ids, entry: IndexEntry, tokenizer: Tokenizer) -> int:
    return entry.tokens


def _characters(ids: Ids, entry: IndexEntry, tokenizer: Tokenizer) -> int:
    own = ids[entry.start : entry.start + entry.tokens]
    return len(_text(own, tokenizer))


def _text(ids: Ids, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(ids[:-1] if _ends(ids, tokenizer) else ids)


def _ends(ids: Ids, tokenizer: Tokenizer) -> bool:
    return len(ids) > 0 and int(ids[-1]) == tokenizer.end_of_text


def _cut_tokens(ids: Ids, inside: list[int], entry: IndexEntry, tokenizer: Tokenizer) -> Iterator[Part]:
    for side, start, end in zip(SIDES, [0, *inside], [*inside, len(ids)], strict=True):
        if end > start:
            text_bytes = int(tokenizer.byte_lengths[ids[start:end]].sum())
            yield Part(side, entry.name, ids[start:end], text_bytes)


def _cut_text(ids: Ids, inside: list[int], entry: IndexEntry, tokenizer: Tokenizer) -> Iterator[Part]:
    text = _text(ids, tokenizer)
    end_of_text = ids[len(ids) - 1 :] if _ends(ids, tokenizer) else ids[:0]
    for side, start, end in zip(SIDES, [0, *inside], [*inside, len(text)], strict=True):
        if end > start:
            own = tokenizer.encode(text[start:end]).astype(ids.dtype)
            if end == len(text):
                own = np.concatenate([own, end_of_text])
            yield Part(side, entry.name, own, len(text[start:end].encode()))
