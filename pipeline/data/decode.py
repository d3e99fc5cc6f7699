"""Documents that come as token ids: their text, and checks that the tokenizer made the ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.core.errors import DataError
from pipeline.data.patterns import split
from pipeline.data.tokenizer import TokenIds, Tokenizer
from pipeline.plugin.components import Document

BLOCK = 1 << 16
"""Ids per piece."""
_LONGEST_CHARACTER = 4
"""Bytes, and so tokens, of a character in UTF-8."""
CHECKED = 1 << 16
"""The number of ids that are compared with those of their text."""
TOLERATED = 0.01
"""The share of compared ids that may differ: texts that were encoded in parts, and then joined, differ at the
joints."""


@dataclass
class IdsDecoder:
    """Decodes documents of ids. The first `CHECKED` ids are decoded and encoded again, which must give the same.

    Attributes:
        tokenizer: The tokenizer that is supposed to have made the ids.
    """

    tokenizer: Tokenizer
    _compared: int = field(default=0, init=False)
    _different: int = field(default=0, init=False)
    _first: str = field(default="", init=False)

    def __post_init__(self) -> None:
        first = [sequence[:1] for sequence in self.tokenizer.token_bytes]
        self._known = np.array([bool(byte) for byte in first])
        self._starts = np.array([not b"\x80" <= byte < b"\xc0" for byte in first])  # no UTF-8 continuation byte

    def pieces(self, document: Document) -> Iterator[tuple[str, TokenIds]]:
        """Yields the document's text and ids in pieces that end between characters; bytes that are not UTF-8 are
        escaped (`surrogateescape`). Special tokens have no text.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        pending, before = np.empty(0, dtype=np.uint32), 0
        for block in document.ids or ():
            for start in range(0, len(block), BLOCK):
                ids = self._checked(document, block[start : start + BLOCK], before + len(pending))
                ids = np.concatenate([pending, ids]) if len(pending) else ids
                end = self._safe_end(ids)
                if end:
                    yield self._decoded(document, ids[:end], before)
                pending, before = ids[end:], before + end
        if len(pending):
            yield self._decoded(document, pending, before)

    def _safe_end(self, ids: TokenIds) -> int:
        """The number of ids, if there are enough for a piece, that end between two characters; else 0."""
        if len(ids) < max(BLOCK, _LONGEST_CHARACTER + 1):
            return 0
        starts = np.flatnonzero(self._starts[ids])
        return int(starts[-1]) if starts.any() else len(ids)  # without any, it is no UTF-8

    def finish(self) -> None:
        """Called after the last document.

        Raises:
            DataError: too many of the ids that were compared differ.
        """
        if self._different > TOLERATED * self._compared:
            raise DataError(
                f"the tokenizer {self.tokenizer.name!r} seems not to be the one that made the ids: it encodes "
                f"{self._different:,} of the first {self._compared:,} otherwise, {self._first}: set "
                "tokenize.tokenizer to the right one, or correct the type or byte order of the numbers"
            )

    def _checked(self, document: Document, ids: np.ndarray[Any, Any], before: int) -> TokenIds:
        """The ids as uint32, all of the vocabulary. `before` is the number of ids before them."""
        unknown = (ids < 0) | (ids >= len(self._known))
        if not unknown.any():
            unknown = ~self._known[ids]
        if unknown.any():
            at = int(np.argmax(unknown))
            raise DataError(
                f"the document {document.name!r} has the id {int(ids[at]):,} (token {before + at:,}), which is not "
                f"in the vocabulary of {self.tokenizer.name!r} with {len(self._known):,} ids: set "
                "tokenize.tokenizer to the one that made the ids, or correct the type or byte order of the numbers"
            )
        return ids.astype(np.uint32)

    def _decoded(self, document: Document, ids: TokenIds, before: int) -> tuple[str, TokenIds]:
        lengths = self.tokenizer.byte_lengths[ids]
        if self._compared < CHECKED:
            special = np.flatnonzero(lengths == 0)
            for start, end in zip([0, *(special + 1)], [*special, len(ids)], strict=True):
                self._compare(document, ids[start:end], before + start)
            if self._compared >= CHECKED:
                self.finish()
        return self.tokenizer.decode_bytes(ids[lengths > 0]).decode(errors="surrogateescape"), ids

    def _compare(self, document: Document, ids: TokenIds, before: int) -> None:
        """Counts the ids that differ from those of their text, but for those of its first and last word, which the
        text may contain only in part."""
        starts = np.flatnonzero(self._starts[ids])
        if not len(starts):
            return
        first = int(starts[0])
        ids, before = ids[first:], before + first
        data = self.tokenizer.decode_bytes(ids)
        text = data.decode(errors="surrogateescape")
        clean = text.rstrip("".join(map(chr, range(0xDC80, 0xDD00))))  # a part of the last character
        if not clean:
            return
        self._compared += len(ids)
        ends = np.cumsum(self.tokenizer.byte_lengths[ids])
        try:
            encoded = self.tokenizer.encode(clean)
            words = split(self.tokenizer.pattern, clean)
        except (DataError, ValueError):  # not UTF-8 within, or characters without a token
            self._different += len(ids)
            self._first = self._first or f"first in {document.name!r}, {text[:20]!r} at token {before:,}"
            return
        if len(encoded) == len(ids) and np.array_equal(encoded, ids):
            return
        whole = len(clean.encode())
        different = np.setxor1d(ends[ends < whole], np.cumsum(self.tokenizer.byte_lengths[encoded])[:-1])
        inside = (different >= len(words[0].encode())) & (different <= whole - len(words[-1].encode()))
        if inside.any():
            at = int(different[inside][0])
            token = int(np.searchsorted(ends, at))
            near = data[max(at - 10, 0) : at + 10].decode(errors="replace")
            self._different += int(inside.sum())
            self._first = self._first or f"first in {document.name!r}, {near!r} at token {before + token:,}"
