"""Train, validation and test: by whole documents, by position, or as the corpus has them; their duplicates."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids, IndexEntry, TokenFolder
from pipeline.errors import DataError

SIDES = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """A document, or what lies of it on one side of a cut."""

    side: str
    name: str
    ids: Ids
    text_bytes: int
    digest: str | None = None


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
        yield _whole(side_of(entry.name, seed, val, test), entry, ids)


def predefined(tokens: TokenFolder) -> Iterator[Part]:
    """Every document, whole, on the side that the corpus gave it.

    Raises:
        DataError: a document has no side, or train or val has no document; the message lists what there is.
    """
    found = Counter(entry.split for entry in tokens.documents("tokens"))
    counts = ", ".join(f"{side} {found[side]:,}" for side in SIDES)
    if found[None]:
        lost = [entry.name for entry in tokens.documents("tokens") if entry.split is None]
        more = f" and {len(lost) - 5:,} more" if len(lost) > 5 else ""
        raise DataError(
            f"split.by: predefined, but {', '.join(lost[:5])}{more} lie in no folder or file named train, val "
            f"(valid, validation) or test (found: {counts} documents): move or rename them, or change split.by"
        )
    for side in ("train", "val"):
        if not found[side]:
            raise DataError(
                f"split.by: predefined, but no document is on the side {side} (found: {counts} documents): make a "
                f"folder or file named {side}, or set split.by: document"
            )
    ids = tokens.ids("tokens")
    for entry in tokens.documents("tokens"):
        yield _whole(str(entry.split), entry, ids)


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
            yield _whole(SIDES[inside.count(0)], entry, ids)
        elif unit == "tokens":
            yield from _cut_tokens(own, inside, entry, tokenizer)
        else:
            yield from _cut_text(own, inside, entry, tokenizer)


def _whole(side: str, entry: IndexEntry, ids: Ids) -> Part:
    return Part(side, entry.name, ids[entry.start : entry.start + entry.tokens], entry.bytes, entry.digest)


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


@dataclass(frozen=True)
class Duplicate:
    """A document whose text, white space aside, is also on a side that is kept cleaner.

    Attributes:
        side, name: The document, on train or val.
        kept_side, kept_name: Its twin on val or test.
    """

    side: str
    name: str
    kept_side: str
    kept_name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.side}) = {self.kept_name} ({self.kept_side})"


def duplicates(parts: Iterable[Part]) -> list[Duplicate]:
    """The documents of train that are in val or test as well, and those of val that are in test."""
    listed = [(part.side, part.name, part.digest) for part in parts if part.digest is not None]
    cleanest: dict[str | None, tuple[str, str]] = {}
    for kept_side in ("val", "test"):
        cleanest |= {digest: (side, name) for side, name, digest in reversed(listed) if side == kept_side}
    return [
        Duplicate(side, name, *cleanest[digest])
        for side, name, digest in listed
        if digest in cleanest and cleanest[digest][0] != side
    ]
