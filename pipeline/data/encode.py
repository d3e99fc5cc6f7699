"""Documents → token ids, in parallel and in bounded memory; the ids equal those of each whole document."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import local

import numpy as np

from pipeline.core.errors import DataError
from pipeline.data.decode import IdsDecoder
from pipeline.data.patterns import word_end
from pipeline.data.tokenizer import TokenIds, Tokenizer
from pipeline.plugin.components import Document

PIECE = 1 << 18
"""Characters per piece: enough to amortise a thread's overhead, few enough to bound memory."""

_SPACE = [character for character in map(chr, range(0x3001)) if character.isspace()]  # all of Unicode's white space
_ASCII_SPACE = "".join(filter(str.isascii, _SPACE)).encode()
_OTHER_SPACE = [character for character in _SPACE if not character.isascii()]

LONGEST_WORD = 1 << 21
"""The maximum number of characters of a word: a BPE needs some 60 bytes for each."""


@dataclass(frozen=True)
class Piece:
    """A part of a document, cut where no token crosses the cut.

    Attributes:
        document: The document.
        text: The text of the part. A document of ids may have bytes that are not UTF-8; they are escaped
            (`surrogateescape`).
        last: Whether this is the document's last piece.
        ids: The ids, if the corpus gives ids instead of text.
    """

    document: Document
    text: str
    last: bool
    ids: TokenIds | None = None


def _ids(piece: Piece, tokenizer: Tokenizer) -> TokenIds:
    if piece.ids is not None:
        return piece.ids
    try:
        return tokenizer.encode(piece.text)
    except ValueError as error:  # for example a lone surrogate
        raise _cannot(piece.document, error) from None


def cut(text: str | Iterable[str], pattern: str, size: int = PIECE) -> Iterator[str]:
    """Cuts a text, or its consecutive blocks, between words of `pattern`, so that the ids stay the same.

    A piece has `size` to 2 · `size` characters, or more if a single word does. Memory is bounded, time is linear.

    Raises:
        ValueError: a word has more than `LONGEST_WORD` characters.
    """
    find_word_end = word_end(pattern)
    pending: list[str] = []
    length, min_length, before = 0, 2 * size, 0
    for block in [text] if isinstance(text, str) else text:
        pending.append(block)
        length += len(block)
        if length < min_length:
            continue
        joined = "".join(pending)
        start = 0
        while len(joined) - start >= min_length:
            end = find_word_end(joined[start : start + min_length], size)
            if end is None and min_length >= 2 * max(LONGEST_WORD, size):
                raise ValueError(
                    f"after byte {before:,}, {joined[start : start + 20]!r}…, a word has over {LONGEST_WORD:,} "
                    "characters, too many to encode: insert line breaks, remove it, or set "
                    "tokenize.tokenizer.name: bytes"
                )
            if end is None:
                min_length *= 2  # do not rescan a long word for each block
            else:
                piece = joined[start : start + end]
                yield piece
                before += len(piece) if piece.isascii() else len(piece.encode(errors="surrogatepass"))
                start, min_length = start + end, 2 * size
        pending, length = [joined[start:]], len(joined) - start
    yield "".join(pending)


def pieces(documents: Iterable[Document], pattern: str) -> Iterator[Piece]:
    """The pieces of all documents, in order, cut between words of `pattern`.

    Raises:
        DataError: a document is too long a word, or token ids instead of a text.
    """
    for document in documents:
        if document.ids is not None:
            raise DataError(
                f"the document {document.name!r} is token ids, which no tokenizer can be trained on: set "
                "tokenize.tokenizer to the one that made them (name: tiktoken, file or bytes)"
            )
        previous: str | None = None
        try:
            for text in cut(document.text, pattern):
                if previous is not None:
                    yield Piece(document, previous, last=False)
                previous = text
        except ValueError as error:
            raise _cannot(document, error) from None
        yield Piece(document, previous or "", last=True)


def text_blocks(document: Document, tokenizer: Callable[[], Tokenizer]) -> Iterator[str]:
    """A document's text in blocks, for one whose ids `tokenizer` made, too."""
    if document.ids is not None:
        yield from (text for text, _ in IdsDecoder(tokenizer()).pieces(document))
    else:
        yield from [document.text] if isinstance(document.text, str) else document.text


def _given(document: Document, decoder: IdsDecoder) -> Iterator[Piece]:
    """The pieces of a document of ids."""
    previous: tuple[str, TokenIds] = ("", np.empty(0, dtype=np.uint32))
    for number, piece in enumerate(decoder.pieces(document)):
        if number:
            yield Piece(document, previous[0], last=False, ids=previous[1])
        previous = piece
    yield Piece(document, previous[0], last=True, ids=previous[1])


def _every(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Piece]:
    decoder = None
    for document in documents:
        if document.ids is None:
            yield from pieces([document], tokenizer.pattern)
        else:
            decoder = decoder or IdsDecoder(tokenizer)
            yield from _given(document, decoder)
    if decoder:
        decoder.finish()


def _cannot(document: Document, error: Exception) -> DataError:
    return DataError(f"the document {document.name!r} cannot be tokenized: {error}")


def encode(documents: Iterable[Document], tokenizer: Tokenizer, threads: int) -> Iterator[tuple[Piece, TokenIds]]:
    """Each piece with its ids, in order. Only a few pieces per thread are in memory at a time."""
    if threads == 1:
        yield from ((piece, _ids(piece, tokenizer)) for piece in _every(documents, tokenizer))
        return
    waiting: deque[Future[list[tuple[Piece, TokenIds]]]] = deque()
    per_thread = local()

    def init_thread() -> None:
        per_thread.tokenizer = replace(tokenizer)  # tiktoken is slower when threads share one

    def ids_of(batch: list[Piece]) -> list[tuple[Piece, TokenIds]]:
        return [(piece, _ids(piece, per_thread.tokenizer)) for piece in batch]

    with ThreadPoolExecutor(threads, initializer=init_thread) as pool:
        for batch in _batches(_every(documents, tokenizer)):
            waiting.append(pool.submit(ids_of, batch))
            if len(waiting) > 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


class TextDigest:
    """A hash of a text without white space (`"".join(text.split())`), updated piece by piece.

    Attributes:
        text_bytes: The size of the text in UTF-8, including white space.
    """

    def __init__(self) -> None:
        self.text_bytes = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._blank = True

    def update(self, text: str) -> None:
        """Adds the next piece."""
        utf8 = text.encode(errors="surrogateescape")
        dense = utf8.translate(None, _ASCII_SPACE)  # five times as fast as split and join
        if not text.isascii():
            for space in _OTHER_SPACE:
                if space in text:
                    dense = dense.replace(space.encode(), b"")
        self.text_bytes += len(utf8)
        self._blank = self._blank and not dense
        self._hash.update(dense)

    @property
    def value(self) -> str | None:
        """The hash; None for white space only."""
        return None if self._blank else self._hash.hexdigest()


def _batches(every: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Groups pieces into batches, one per call of a thread: many small documents, or a part of a large one."""
    batch: list[Piece] = []
    characters = 0
    for piece in every:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= PIECE:
            yield batch
            batch, characters = [], 0
    yield batch
