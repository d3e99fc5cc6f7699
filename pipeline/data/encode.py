"""Documents → token ids, in parallel and in bounded memory; the ids equal those of each whole document."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import local
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.core.errors import DataError
from pipeline.data.decode import IdsDecoder
from pipeline.data.masked import Learn
from pipeline.data.parts import encode_parts, plain_text
from pipeline.data.patterns import PIECE, cut
from pipeline.data.tokenizer import TokenIds, Tokenizer
from pipeline.plugin.components import Document, Part

T = TypeVar("T")

_SPACE = [character for character in map(chr, range(0x3001)) if character.isspace()]  # all of Unicode's white space
_ASCII_SPACE = "".join(filter(str.isascii, _SPACE)).encode()
_OTHER_SPACE = [character for character in _SPACE if not character.isascii()]


@dataclass(frozen=True)
class Piece:
    """A part of a document, cut where no token crosses the cut.

    Attributes:
        document: The document.
        text: The text of the part, without special tokens. A document of ids may have bytes that are not UTF-8;
            they are escaped (`surrogateescape`).
        last: Whether this is the document's last piece.
        ids: The ids, if the corpus gives ids instead of text.
        parts: The parts of the text, if the corpus gives them.
    """

    document: Document
    text: str
    last: bool
    ids: TokenIds | None = None
    parts: Sequence[Part] | None = None


class Encoded(NamedTuple):
    """The tokens of a piece.

    Attributes:
        piece: The piece.
        ids: Its ids [T].
        learn: Whether each is learnt [T]; None if all are.
    """

    piece: Piece
    ids: TokenIds
    learn: Learn | None = None


def _encoded(piece: Piece, tokenizer: Tokenizer) -> Encoded:
    if piece.ids is not None:
        return Encoded(piece, piece.ids)
    try:
        if piece.parts is not None:
            return Encoded(piece, *encode_parts(piece.parts, tokenizer))
        return Encoded(piece, tokenizer.encode(piece.text))
    except ValueError as error:  # for example a lone surrogate
        raise _cannot(piece.document, error) from None


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
        if (parts := parts_of(document)) is not None:
            yield Piece(document, plain_text(parts), last=True, parts=parts)
            continue
        try:
            for text, last in _marked(cut(blocks_of(document), pattern), ""):
                yield Piece(document, text, last)
        except ValueError as error:
            raise _cannot(document, error) from None


def text_blocks(document: Document, tokenizer: Callable[[], Tokenizer]) -> Iterator[str]:
    """A document's text in blocks, for one whose ids `tokenizer` made, too; without special tokens."""
    if document.ids is not None:
        yield from (text for text, _ in IdsDecoder(tokenizer()).pieces(document))
    elif (parts := parts_of(document)) is not None:
        yield plain_text(parts)
    else:
        yield from blocks_of(document)


def parts_of(document: Document) -> Sequence[Part] | None:
    """The parts of a document's text; None if it is a text or an iterable of blocks."""
    text = document.text
    is_list = isinstance(text, Sequence) and not isinstance(text, str)
    return text if is_list and any(isinstance(part, Part) for part in text) else None  # type: ignore[return-value]


def blocks_of(document: Document) -> Iterable[str]:
    """The consecutive blocks of a text that is not in parts."""
    return [document.text] if isinstance(document.text, str) else document.text  # type: ignore[return-value]


def _marked(items: Iterator[T], if_none: T) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last; `if_none` if there are none."""
    item = next(items, if_none)
    for following in items:
        yield item, False
        item = following
    yield item, True


def _every(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Piece]:
    decoder = None
    for document in documents:
        if document.ids is None:
            yield from pieces([document], tokenizer.pattern)
        else:
            decoder = decoder or IdsDecoder(tokenizer)
            none = ("", np.empty(0, np.uint32))
            for (text, ids), last in _marked(decoder.pieces(document), none):
                yield Piece(document, text, last, ids)
    if decoder:
        decoder.finish()


def _cannot(document: Document, error: Exception) -> DataError:
    return DataError(f"the document {document.name!r} cannot be tokenized: {error}")


def encode(documents: Iterable[Document], tokenizer: Tokenizer, threads: int) -> Iterator[Encoded]:
    """Each piece with its ids, in order. Only a few pieces per thread are in memory at a time."""
    if threads == 1:
        yield from (_encoded(piece, tokenizer) for piece in _every(documents, tokenizer))
        return
    waiting: deque[Future[list[Encoded]]] = deque()
    per_thread = local()

    def init_thread() -> None:
        per_thread.tokenizer = replace(tokenizer)  # tiktoken is slower when threads share one

    def all_encoded(batch: list[Piece]) -> list[Encoded]:
        return [_encoded(piece, per_thread.tokenizer) for piece in batch]

    with ThreadPoolExecutor(threads, initializer=init_thread) as pool:
        for batch in _batches(_every(documents, tokenizer)):
            waiting.append(pool.submit(all_encoded, batch))
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
