"""Documents → token ids, on all cores and in bounded memory; the ids are those of each document as a whole."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import local

from pipeline.core.errors import DataError
from pipeline.data.tokenizer import TokenIds, Tokenizer
from pipeline.plugin.components import Document

PIECE = 1 << 18
"""Characters encoded at once: enough to make a thread's start cheap, few enough to bound memory."""

_SPACE = [character for character in map(chr, range(0x3001)) if character.isspace()]  # there is none above
_ASCII_SPACE = "".join(filter(str.isascii, _SPACE)).encode()
_OTHER_SPACE = [character for character in _SPACE if not character.isascii()]

_SAFE_PLACE = re.compile(r"[ \n](?<=[^\W_].)", re.DOTALL)


@dataclass(frozen=True)
class Piece:
    """A part of a document, cut where no token crosses.

    Attributes:
        document: The document.
        text: The part's text.
        last: Whether it is the document's last part.
    """

    document: Document
    text: str
    last: bool


def _ids(piece: Piece, tokenizer: Tokenizer) -> TokenIds:
    try:
        return tokenizer.encode(piece.text)
    except ValueError as error:  # half a surrogate pair, or a million spaces in a row
        raise DataError(f"the document {piece.document.name!r} cannot be tokenized: {error}") from None


def cut(text: str | Iterable[str], size: int = PIECE) -> Iterator[str]:
    """Cuts a text, or its consecutive blocks, into pieces of about `size` characters with the same ids.

    A cut lies before a space or a line break that follows a letter or a digit: every split pattern
    (gpt2's, cl100k's, o200k's) begins a new word there, whatever surrounds it. Where a text has no such
    place (one word of a million letters), the piece grows until there is one.
    """
    pending: list[str] = []
    length = 0
    for block in [text] if isinstance(text, str) else text:
        pending.append(block)
        length += len(block)
        if length < 2 * size:
            continue
        joined = "".join(pending)
        start = 0
        while len(joined) - start >= 2 * size:
            found = _SAFE_PLACE.search(joined, start + size)
            if found is None:
                break
            yield joined[start : found.start()]
            start = found.start()
        pending, length = [joined[start:]], len(joined) - start
    yield "".join(pending)


def pieces(documents: Iterable[Document]) -> Iterator[Piece]:
    """Every document's pieces, in order."""
    for document in documents:
        previous: str | None = None
        for text in cut(document.text):
            if previous is not None:
                yield Piece(document, previous, last=False)
            previous = text
        yield Piece(document, previous or "", last=True)


def encode(documents: Iterable[Document], tokenizer: Tokenizer, threads: int) -> Iterator[tuple[Piece, TokenIds]]:
    """Each piece with its ids, in order; only a few pieces per thread are in memory at a time."""
    waiting: deque[Future[list[tuple[Piece, TokenIds]]]] = deque()
    own = local()

    def begin() -> None:
        own.tokenizer = replace(tokenizer)  # tiktoken's regular expressions are slower when threads share them

    def ids_of(batch: list[Piece]) -> list[tuple[Piece, TokenIds]]:
        return [(piece, _ids(piece, own.tokenizer)) for piece in batch]

    with ThreadPoolExecutor(threads, initializer=begin) as pool:
        for batch in _batches(pieces(documents)):
            waiting.append(pool.submit(ids_of, batch))
            if len(waiting) > 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


class TextDigest:
    """A hash of a text without its white space, updated piece by piece: the hash of `"".join(text.split())`.

    Attributes:
        text_bytes: The text's size in UTF-8, white space included.
    """

    def __init__(self) -> None:
        self.text_bytes = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._blank = True

    def update(self, text: str) -> None:
        """Adds the next piece."""
        utf8 = text.encode()
        dense = utf8.translate(None, _ASCII_SPACE)  # five times as fast as splitting and joining
        if not text.isascii():
            for space in _OTHER_SPACE:
                if space in text:
                    dense = dense.replace(space.encode(), b"")
        self.text_bytes += len(utf8)
        self._blank = self._blank and not dense
        self._hash.update(dense)

    @property
    def value(self) -> str | None:
        """The hash; None if there was only white space."""
        return None if self._blank else self._hash.hexdigest()


def _batches(every: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces that one thread encodes at once: many small documents, or a part of a large one."""
    batch: list[Piece] = []
    characters = 0
    for piece in every:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= PIECE:
            yield batch
            batch, characters = [], 0
    yield batch
