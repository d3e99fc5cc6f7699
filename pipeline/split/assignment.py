"""Assigns documents to train, val and test (by document, by position, or predefined), and finds duplicates."""

from __future__ import annotations

import hashlib
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from pipeline.core.console import listed
from pipeline.core.errors import DataError
from pipeline.data.encode import cut
from pipeline.data.index import SPLITS, IndexEntry
from pipeline.data.joined import Ids
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder


@dataclass(frozen=True)
class Part:
    """A document, or its part in one split.

    Attributes:
        split: Its split.
        name: The document's name.
        blocks: Its ids in blocks; they can be read only once.
        digest: The document's digest; None for a part.
    """

    split: str
    name: str
    blocks: Iterable[Ids]
    digest: str | None = None


def split_of(name: str, seed: int, val: float, test: float) -> str:
    """The split of a document. It depends only on the document's name and the seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    if fraction < test:
        return "test"
    return "val" if fraction < test + val else "train"


def by_document(tokens: TokenFolder, seed: int, val: float, test: float) -> Iterator[Part]:
    """Assigns whole documents by a hash of their names."""
    for entry in tokens.documents("tokens"):
        yield _whole(split_of(entry.name, seed, val, test), entry, tokens)


def predefined(tokens: TokenFolder) -> Iterator[Part]:
    """Assigns whole documents to the splits that the corpus names.

    Raises:
        DataError: a document has no split, or train or val is empty; the message has the counts.
    """
    entries = list(tokens.documents("tokens"))
    documents = Counter(entry.split for entry in entries)
    found = f"found: {', '.join(f'{split} {documents[split]:,}' for split in SPLITS)} documents"
    if documents[None]:
        lost = listed([entry.name for entry in entries if entry.split is None])
        raise DataError(
            f"split.by: predefined, but {lost} are not in a folder or file named train, val (valid, validation) or "
            f"test ({found}): move or rename them, or change split.by"
        )
    for split in ("train", "val"):
        if not documents[split]:
            raise DataError(
                f"split.by: predefined, but no document is in the split {split} ({found}): create a folder or file "
                f"named {split}, or set split.by: document"
            )
    for entry in entries:
        yield _whole(str(entry.split), entry, tokens)


def by_position(tokens: TokenFolder, unit: str, val: float, test: float) -> Iterator[Part]:
    """Cuts the corpus, in its order, into train, then val, then test.

    The `unit` "tokens" cuts between two tokens. "characters" cuts the text: the document at a cut is decoded, and
    its parts are tokenized separately, as if the text had been cut first.
    """
    if unit == "tokens":
        lengths = [entry.tokens for entry in tokens.documents("tokens")]
    else:
        characters = _characters(tokens.tokenizer)
        lengths = [
            sum(int(characters[ids].sum()) for ids in tokens.blocks("tokens", entry.start, entry.end))
            for entry in tokens.documents("tokens")
        ]
    total = sum(lengths)
    # Round first: in floating point, 1 − 0.05 − 0.05 is slightly less than 0.9.
    cuts = [int(round(total * share, 6)) for share in (1 - val - test, 1 - test)]
    starts = accumulate(lengths, initial=0)
    for entry, length, begin in zip(tokens.documents("tokens"), lengths, starts, strict=False):
        inside = [min(max(cut - begin, 0), length) for cut in cuts]
        for split, start, end in zip(SPLITS, [0, *inside], [*inside, length], strict=True):
            if start == end:
                continue
            if end - start == length:
                yield _whole(split, entry, tokens)
            elif unit == "tokens":
                yield Part(split, entry.name, tokens.blocks("tokens", entry.start + start, entry.start + end))
            else:
                yield Part(split, entry.name, _tokenized_again(tokens, entry, start, end, end == length))


def _whole(split: str, entry: IndexEntry, tokens: TokenFolder) -> Part:
    return Part(split, entry.name, tokens.blocks("tokens", entry.start, entry.end), entry.digest)


def _characters(tokenizer: Tokenizer) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number of characters that start in each id's bytes [V]; 0 for special tokens."""
    inside = bytes(range(0x80, 0xC0))  # UTF-8 continuation bytes
    lengths = np.array([len(each.translate(None, inside)) for each in tokenizer.token_bytes], dtype=np.int64)
    lengths[list(tokenizer.special_tokens.values())] = 0
    return lengths


def _tokenized_again(tokens: TokenFolder, entry: IndexEntry, start: int, end: int, ends: bool) -> Iterator[Ids]:
    """The ids of a document's characters start … end−1, tokenized as a separate text; with end-of-text if it
    `ends`."""
    for piece in cut(_text(tokens, entry, start, end), tokens.tokenizer.pattern):
        yield tokens.tokenizer.encode(piece)
    if ends:
        for last in tokens.blocks("tokens", entry.end - 1, entry.end):
            yield last[last == tokens.tokenizer.end_of_text]


def _text(tokens: TokenFolder, entry: IndexEntry, start: int, end: int) -> Iterator[str]:
    """A document's characters start … end−1, in blocks."""
    decoder = getincrementaldecoder("utf-8")()
    position = 0
    for ids in tokens.blocks("tokens", entry.start, entry.end):
        text = decoder.decode(tokens.tokenizer.decode_bytes(ids[ids != tokens.tokenizer.end_of_text]))
        yield text[max(start - position, 0) : end - position]
        position += len(text)
        if position >= end:
            return


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


def duplicates(parts: Iterable[Part]) -> list[Duplicate]:
    """The documents of train whose text is also in val or test, and those of val whose text is also in test."""
    listed = [(part.split, part.name, part.digest) for part in parts if part.digest is not None]
    cleanest: dict[str | None, tuple[str, str]] = {}
    for kept_split in ("val", "test"):
        cleanest |= {digest: (split, name) for split, name, digest in reversed(listed) if split == kept_split}
    return [
        Duplicate(split, name, *cleanest[digest])
        for split, name, digest in listed
        if digest in cleanest and cleanest[digest][0] != split
    ]
