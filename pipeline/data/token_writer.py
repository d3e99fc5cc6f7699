"""Writes token files: raw little-endian ids, an index of documents, and which tokens are learnt."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.data.index import IndexEntry, IndexWriter
from pipeline.data.joined import Ids, check_ids
from pipeline.data.masked import Learn
from pipeline.data.tokenizer import Tokenizer

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]

_BLOCK = 1 << 18
_MOST_WAITING = 1 << 12
"""The number of arrays that wait to be written; a small array needs some 100 bytes more than its ids."""


class TokenWriter(AbstractContextManager["TokenWriter"]):
    """Writes STEM.bin, raw ids, and its index in bounded memory; STEM.learn.bin if some ids are only read.

    Attributes:
        tokens: The number of tokens.
        documents: The number of documents that end in this file.
        text_bytes: The size of their text in UTF-8.
        counts: How often each id occurs, int64 [V]; complete when the writer is closed.
        learnt: The number of tokens that are learnt; None if all are. Complete when the writer is closed.
    """

    def __init__(self, folder: Path, stem: str, tokenizer: Tokenizer) -> None:
        self.tokens = self.documents = self.text_bytes = 0
        self.counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._dtype = smallest_dtype(tokenizer.vocab_size)
        self._start = self._waiting_tokens = 0
        self._waiting: list[tuple[Ids, Learn | None]] = []
        self._path = folder / f"{stem}.bin"
        self._ids = self._path.open("wb")
        self._learn_path = folder / learn_name(stem)
        self._learn: IO[bytes] | None = None
        self.learnt: int | None = None
        self._index = IndexWriter(folder, stem)

    def write(self, ids: Ids, learn: Learn | None = None) -> None:
        """Appends ids to the current document.

        Args:
            ids: The ids [T].
            learn: 1 for each that is learnt, 0 for one that is only read [T]; None if all are learnt.

        Raises:
            DataError: an id is not in the vocabulary; perhaps only later, or when the writer is closed.
        """
        self._waiting.append((ids, learn))
        self.tokens += len(ids)
        self._waiting_tokens += len(ids)
        if self._waiting_tokens >= _BLOCK or len(self._waiting) >= _MOST_WAITING:
            self._flush()

    def _flush(self) -> None:
        """Checks, counts and writes the ids that wait: one pass over many, because each pass costs O(V)."""
        if self._waiting_tokens:
            ids = np.concatenate([ids for ids, _ in self._waiting])
            self._write_learn(self.tokens - len(ids))
            check_ids(ids, len(self.counts), self._path.name, "run `python -m pipeline tokenize`")
            self.counts += np.bincount(ids, minlength=len(self.counts))
            self._ids.write(ids.astype(self._dtype, copy=False).data)
        self._waiting, self._waiting_tokens = [], 0

    def _write_learn(self, before: int) -> None:
        """Writes which of the ids that wait are learnt, unless all are so far; `before` is the number of tokens
        before them."""
        if self._learn is None:
            if all(learn is None or learn.all() for _, learn in self._waiting):
                return
            self._learn, self.learnt = self._learn_path.open("wb"), before
            for start in range(0, before, _BLOCK):
                self._learn.write(b"\1" * min(_BLOCK, before - start))
        for ids, learn in self._waiting:
            self._learn.write(b"\1" * len(ids) if learn is None else learn.astype(np.uint8, copy=False).tobytes())
            self.learnt = (self.learnt or 0) + (len(ids) if learn is None else int(np.count_nonzero(learn)))

    def end_document(
        self,
        name: str,
        text_bytes: int,
        split: str | None = None,
        digest: str | None = None,
        continues: bool = False,
    ) -> None:
        """Ends the current document. A document without tokens gets no index entry.

        Args:
            name: The document's name.
            text_bytes: The size of its text, or of its part in this file.
            split: The split that the corpus assigns, if any.
            digest: A `TextDigest` of the same text; None if it is blank or cut.
            continues: Whether the document continues at the beginning of the next shard, under the same name.
        """
        if self.tokens > self._start:
            tokens = self.tokens - self._start
            self._index.add(IndexEntry(name, self._start, tokens, text_bytes, split, digest), continues)
            self.documents += not continues
            self.text_bytes += text_bytes
        self._start = self.tokens

    def summary(self) -> dict[str, int]:
        """The numbers of tokens, documents, bytes and, unless all are, of learnt tokens, for meta.json."""
        summary = {"tokens": self.tokens, "documents": self.documents, "bytes": self.text_bytes}
        return summary if self.learnt is None else summary | {"learnt": self.learnt}

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._ids, self._index:
            if kind is None:
                self._flush()
            if self._learn is not None:
                self._learn.close()


def learn_name(stem: str) -> str:
    """The name of the file that says which tokens are learnt."""
    return f"{stem}.learn.bin"


def shard_stem(name: str, number: int, count: int) -> str:
    """The STEM of a shard: "tokens-00000-of-00003"."""
    return f"{name}-{number:05}-of-{count:05}"


def smallest_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """uint16 if all ids fit, as other trainers expect; otherwise uint32."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")
