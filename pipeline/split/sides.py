"""Train, validation and test: by whole documents, by position, or as the corpus has them; their duplicates."""

from __future__ import annotations

import hashlib
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.core.errors import DataError
from pipeline.data.encode import cut
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids, IndexEntry, Span, TokenFolder

Lengths = np.ndarray[tuple[int], np.dtype[np.int64]]

SIDES = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """A document, or what lies of it on one side of a cut.

    Attributes:
        side: Where it goes.
        name: The document's.
        blocks: Its ids, in blocks that may be iterated over again.
        text_bytes: Its text's size in UTF-8.
        digest: The document's, if it is whole.
    """

    side: str
    name: str
    blocks: Iterable[Ids]
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
    for entry in tokens.documents("tokens"):
        yield _whole(side_of(entry.name, seed, val, test), entry, tokens)


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
    for entry in tokens.documents("tokens"):
        yield _whole(str(entry.split), entry, tokens)


def by_position(tokens: TokenFolder, unit: str, val: float, test: float) -> Iterator[Part]:
    """The corpus in its order, cut in two places: train, then val, then test.

    `unit` "tokens" cuts between two tokens; "characters" cuts the text, so that the document at the cut is
    decoded and each of its sides is tokenized anew, as if the text had been cut first.
    """
    tokenizer = tokens.tokenizer
    lengths = _characters(tokenizer) if unit == "characters" else None

    def length_of(entry: IndexEntry) -> int:
        return entry.tokens if lengths is None else _sum(tokens.span("tokens", entry), lengths)

    total = sum(length_of(entry) for entry in tokens.documents("tokens"))
    # Rounded first: in floating point 1 − 0.05 − 0.05 is a little less than 0.9.
    cuts = [int(round(total * share, 6)) for share in (1 - val - test, 1 - test)]
    position = 0
    for entry in tokens.documents("tokens"):
        length = length_of(entry)
        inside = [min(max(place - position, 0), length) for place in cuts]
        position += length
        if inside in ([0, 0], [0, length], [length, length]):  # no cut goes through this document
            yield _whole(SIDES[inside.count(0)], entry, tokens)
            continue
        span = tokens.span("tokens", entry)
        for side, start, end in zip(SIDES, [0, *inside], [*inside, length], strict=True):
            if end == start:
                continue
            if unit == "tokens":
                part = span.part(start, end)
                yield Part(side, entry.name, part, _sum(part, tokenizer.byte_lengths))
            else:
                text = _CutText(span, tokenizer, start, end, end == length)
                yield Part(side, entry.name, text, text.bytes)


def _whole(side: str, entry: IndexEntry, tokens: TokenFolder) -> Part:
    return Part(side, entry.name, tokens.span("tokens", entry), entry.bytes, entry.digest)


def _sum(span: Span, lengths: Lengths) -> int:
    return sum(int(lengths[ids].sum()) for ids in span)


def _characters(tokenizer: Tokenizer) -> Lengths:
    """The characters that begin in each id's bytes [V]: 0 for special tokens, which are no text."""
    inside = bytes(range(0x80, 0xC0))  # the bytes of a character's UTF-8 after its first one
    lengths = np.array([len(each.translate(None, inside)) for each in tokenizer.token_bytes], dtype=np.int64)
    lengths[list(tokenizer.special_tokens.values())] = 0
    return lengths


@dataclass(frozen=True)
class _CutText:
    """The ids of a document's characters `start` … `end`, tokenized anew; and end-of-text if it `ends`."""

    document: Span
    tokenizer: Tokenizer
    start: int
    end: int
    ends: bool

    def __iter__(self) -> Iterator[Ids]:
        for piece in cut(self._text()):
            yield self.tokenizer.encode(piece)
        if self.ends:
            last = next(iter(self.document.part(len(self.document) - 1, len(self.document))))
            yield last[last == self.tokenizer.end_of_text]

    @property
    def bytes(self) -> int:
        """The text's size in UTF-8."""
        return sum(len(text.encode()) for text in self._text())

    def _text(self) -> Iterator[str]:
        decoder = getincrementaldecoder("utf-8")()
        position = 0
        for ids in self.document:
            ordinary = ids[ids != self.tokenizer.end_of_text]
            text = decoder.decode(self.tokenizer.decode_bytes(ordinary))
            yield text[max(self.start - position, 0) : self.end - position]
            position += len(text)
            if position >= self.end:
                return


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
