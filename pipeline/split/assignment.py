"""Assigns documents to train, val and test: by document, by position, or predefined."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from pipeline.core.console import listed
from pipeline.core.errors import DataError
from pipeline.data.index import SPLITS, IndexEntry
from pipeline.data.joined import Ids
from pipeline.data.masked import Learn
from pipeline.data.patterns import cut
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder
from pipeline.plugin.splits import split_of

Places = np.ndarray[tuple[int], np.dtype[np.uint8]]
"""For each document the index of its split in SPLITS, `CUT` or `REMOVED`: a byte per document."""

CUT, REMOVED = 3, 4
_AT_ONCE = 1 << 18
_CONTINUATION = bytes(range(0x80, 0xC0))  # UTF-8 continuation bytes


@dataclass(frozen=True)
class Part:
    """A document, or its part in one split.

    Attributes:
        split: Its split.
        name: The document's name.
        start, end: Its first token among all tokens, and the one after its last. A part that is cut between two
            characters may begin and end with a part of a token more.
        blocks: Its ids in blocks, each with which of them are learnt (None: all); they can be read only once.
        text_bytes: The size of its text in UTF-8; None for a part, whose ids tell it.
    """

    split: str
    name: str
    start: int
    end: int
    blocks: Iterable[tuple[Ids, Learn | None]]
    text_bytes: int | None = None


class Cut(NamedTuple):
    """A place at which the corpus is cut: after `characters` characters of the token `token`."""

    token: int
    characters: int = 0


@dataclass(frozen=True)
class Assignment:
    """The splits of all documents.

    Attributes:
        places: The split of each document.
        cuts: Where the corpus is cut into train, val and test, if it is split by position.
        again: Whether the parts of a document that is cut are tokenized again.
    """

    places: Places
    cuts: Sequence[Cut] = ()
    again: bool = False

    def counts(self) -> list[int]:
        """The number of whole documents in each split."""
        return [int(np.count_nonzero(self.places == place)) for place in range(len(SPLITS))]

    def parts(self, tokens: TokenFolder) -> Iterator[Part]:
        """The documents, and the parts of those that are cut, in order; without the removed ones."""
        for entry, place in zip(tokens.documents("tokens"), self.places.tobytes(), strict=True):
            if place < len(SPLITS):
                blocks = tokens.masked_blocks("tokens", entry.start, entry.end)
                yield Part(SPLITS[place], entry.name, entry.start, entry.end, blocks, entry.bytes)
            elif place == CUT:
                yield from self._parts_of(entry, tokens)

    def _parts_of(self, entry: IndexEntry, tokens: TokenFolder) -> Iterator[Part]:
        """The parts of a document that is cut."""
        first, last = Cut(entry.start), Cut(entry.end)
        inside = [min(max(each, first), last) for each in self.cuts]
        for split, start, end in zip(SPLITS, [first, *inside], [*inside, last], strict=True):
            if start == end:
                continue
            blocks: Iterable[tuple[Ids, Learn | None]]
            if self.again:
                blocks = ((ids, None) for ids in _tokenized_again(tokens, entry, start, end))
            else:
                blocks = tokens.masked_blocks("tokens", start.token, end.token)
            yield Part(split, entry.name, start.token, end.token, blocks)


def by_document(tokens: TokenFolder, seed: int, val: float, test: float) -> Assignment:
    """Assigns whole documents by a hash of their names."""
    names = tokens.index("tokens").names()
    places = np.fromiter((SPLITS.index(split_of(name, seed, val, test)) for name in names), np.uint8)
    tokens.check_documents("tokens", len(places))
    return Assignment(places)


def predefined(tokens: TokenFolder) -> Assignment:
    """Assigns whole documents to the splits that the corpus names.

    Raises:
        DataError: a document has no split, or train or val is empty; the message has the counts.
    """
    index = tokens.index("tokens")
    given = np.concatenate([records["split"].copy() for records in index.records()])
    without, *documents = (int(np.count_nonzero(given == split)) for split in range(len(SPLITS) + 1))
    counted = ", ".join(f"{split} {count:,}" for split, count in zip(SPLITS, documents, strict=True))
    found = f"found: {counted} documents"
    if without:
        first = names_of(tokens, np.flatnonzero(given == 0)[:5].tolist())
        raise DataError(
            f"split.by: predefined, but {listed(list(first.values()), count=without)} are not in a folder or file "
            f"named train, val (valid, validation) or test ({found}): move or rename them, or change split.by"
        )
    for split, count in zip(("train", "val"), documents, strict=False):
        if not count:
            raise DataError(
                f"split.by: predefined, but no document is in the split {split} ({found}): create a folder or file "
                f"named {split}, or set split.by: document"
            )
    given -= 1
    return Assignment(given)


def names_of(tokens: TokenFolder, numbers: list[int]) -> dict[int, str]:
    """The names of some documents, by their numbers, which ascend."""
    names, found, read = tokens.index("tokens").names(), {}, 0
    for number in numbers:
        found[number] = next(islice(names, number - read, None))
        read = number + 1
    return found


def by_position(tokens: TokenFolder, unit: str, val: float, test: float) -> Assignment:
    """Cuts the corpus, in its order, into train, then val, then test.

    The `unit` "tokens" cuts between two tokens. "characters" cuts the text: the document at a cut is decoded, and
    its parts are tokenized separately, as if the text had been cut first.
    """
    again = unit == "characters"
    if again and tokens.has_mask("tokens"):
        raise DataError("split.unit: characters cannot cut texts in parts, such as conversations: set it to tokens")
    counts, characters = tokens.counts("tokens"), _characters(tokens.tokenizer)
    total = int((counts * characters).sum() if again else counts.sum())
    # Round first: in floating point, 1 − 0.05 − 0.05 is slightly less than 0.9.
    sizes = [int(round(total * share, 6)) for share in (1 - val - test, 1 - test)]
    cuts = _character_cuts(tokens, characters, total, sizes) if again else [Cut(size) for size in sizes]
    places = []
    for records in tokens.index("tokens").records():
        starts = records["start"].astype(np.int64)
        ends = starts + records["tokens"].astype(np.int64)
        place, inside = np.zeros(len(starts), np.uint8), np.zeros(len(starts), bool)
        for token, skipped in cuts:
            following = token + (skipped > 0)  # the first token that is wholly behind the cut
            place += starts >= following
            inside |= (starts < following) & (token < ends)
        places.append(np.where(inside, np.uint8(CUT), place))
    return Assignment(np.concatenate(places), cuts, again)


def _character_cuts(
    tokens: TokenFolder, characters: np.ndarray[Any, Any], total: int, sizes: Sequence[int]
) -> list[Cut]:
    """The cuts after sizes[i] of `total` characters, which ascend; only the tokens behind them are read."""
    end = tokens.meta["files"]["tokens"]["tokens"]
    cuts: list[Cut] = []
    for size in reversed(sizes):
        if size == total:
            cuts.append(Cut(end))
            continue
        while True:  # blocks from the end of the tokens, until one holds the cut
            start = max(end - _AT_ONCE, 0)
            ids = np.concatenate(list(tokens.blocks("tokens", start, end)))
            before = total - int(characters[ids].sum())  # characters before this block
            if before <= size:
                break
            end, total = start, before
        upto = before + np.cumsum(characters[ids])
        place = int(np.searchsorted(upto, size, side="right"))
        cuts.append(Cut(start + place, size - int(upto[place] - characters[ids[place]])))
    return cuts[::-1]


def _characters(tokenizer: Tokenizer) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number of characters that start in each id's bytes [V]; 0 for special tokens."""
    lengths = np.array([len(each.translate(None, _CONTINUATION)) for each in tokenizer.token_bytes], dtype=np.int64)
    lengths[list(tokenizer.special_tokens.values())] = 0
    return lengths


def _tokenized_again(tokens: TokenFolder, entry: IndexEntry, start: Cut, end: Cut) -> Iterator[Ids]:
    """The ids of a document's text between two cuts, tokenized as a separate text; with end-of-text at its end."""
    ends = end.token == entry.end
    count = None
    if not ends:
        characters = _characters(tokens.tokenizer)
        between = sum(int(characters[ids].sum()) for ids in tokens.blocks("tokens", start.token, end.token))
        count = between - start.characters + end.characters
    text = _text(tokens, entry, start, count)
    for piece in cut(text, tokens.tokenizer.pattern):
        yield tokens.tokenizer.encode(piece)
    if ends:
        for last in tokens.blocks("tokens", entry.end - 1, entry.end):
            yield last[last == tokens.tokenizer.end_of_text]


def _text(tokens: TokenFolder, entry: IndexEntry, start: Cut, count: int | None) -> Iterator[str]:
    """A document's text from a cut on, in blocks: `count` characters, or all.

    Raises:
        DataError: the text is not UTF-8, which is possible for ids that others made.
    """
    decoder, beginning = getincrementaldecoder("utf-8")(), start.token > entry.start
    position, until = -start.characters, count
    for ids in tokens.blocks("tokens", start.token, entry.end):
        part = tokens.tokenizer.decode_bytes(ids[ids != tokens.tokenizer.end_of_text])
        if beginning:
            part = part.lstrip(_CONTINUATION)  # the end of a character before the cut
            beginning = not part
        try:
            text = decoder.decode(part)
        except UnicodeDecodeError:
            raise _no_text(entry) from None
        yield text[max(-position, 0) : None if until is None else max(until - position, 0)]
        position += len(text)
        if until is not None and position >= until:
            return
    if decoder.getstate()[0]:  # a part of a character
        raise _no_text(entry)


def _no_text(entry: IndexEntry) -> DataError:
    return DataError(
        f"the document {entry.name!r} is cut between characters, but its ids are not UTF-8: set split.unit: tokens"
    )
