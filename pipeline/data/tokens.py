"""Token files: raw little-endian ids, an index of documents, the tokenizer and a meta.json, in one folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import DataError
from pipeline.core.files import MANIFEST, read_json, verify_manifest, write_json, write_manifest
from pipeline.data.tokenizer import Tokenizer

Ids = np.ndarray[tuple[int], np.dtype[Any]]

_BLOCK = 1 << 18

TOKENIZER = "tokenizer.json"
META = "meta.json"


@dataclass(frozen=True)
class IndexEntry:
    """Where a token file holds a document, or the document's part on one side of a cut.

    Attributes:
        name: The document's name.
        start: Offset of its first token.
        tokens: Its tokens, end-of-text included.
        bytes: Its text's size in UTF-8.
        split: The side that the corpus assigned, if any.
        digest: A hash of its text without white space, to find duplicates; None if it is blank or cut.
    """

    name: str
    start: int
    tokens: int
    bytes: int
    split: str | None = None
    digest: str | None = None

    @property
    def end(self) -> int:
        """Offset of the token after its last one."""
        return self.start + self.tokens


class TokenWriter(AbstractContextManager["TokenWriter"]):
    """Writes NAME.bin and its index NAME.documents.jsonl in bounded memory."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer) -> None:
        self.tokens = self.documents = self.text_bytes = 0
        self._dtype = smallest_dtype(tokenizer.vocab_size)
        self._limit = tokenizer.vocab_size
        self._start = 0
        self._ids = (folder / f"{name}.bin").open("wb")
        self._index = (folder / f"{name}.documents.jsonl").open("w", encoding="utf-8")

    def write(self, ids: Ids) -> None:
        """Appends ids to the current document."""
        if len(ids) and int(ids.max()) >= self._limit:
            raise DataError(f"token id {int(ids.max())} is not in the vocabulary of {self._limit}")
        self._ids.write(np.ascontiguousarray(ids, dtype=self._dtype).data)
        self.tokens += len(ids)

    def end_document(self, name: str, text_bytes: int, split: str | None = None, digest: str | None = None) -> None:
        """Ends the current document; a document without tokens gets no entry."""
        if self.tokens > self._start:
            entry = IndexEntry(name, self._start, self.tokens - self._start, text_bytes, split, digest)
            self._index.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
            self.documents += 1
            self.text_bytes += text_bytes
        self._start = self.tokens

    def summary(self) -> dict[str, int]:
        """The file's numbers, for meta.json."""
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.text_bytes}

    def __exit__(self, *error: object) -> None:
        self._ids.close()
        self._index.close()


def finish_folder(
    folder: Path, tokenizer: Tokenizer, files: dict[str, dict[str, int]], *, params: Mapping[str, Any], **more: Any
) -> None:
    """Writes the tokenizer, meta.json and the manifest beside the token files.

    meta.json holds each file's `TokenWriter.summary`, the effective `params` that made the files, by section, and
    the keys of `more`.
    """
    tokenizer.save(folder / TOKENIZER)
    write_json(
        folder / META,
        {
            "dtype": smallest_dtype(tokenizer.vocab_size).name,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
            "files": files,
            **more,
            "params": params,
        },
    )
    write_manifest(folder)


class TokenFolder:
    """A folder that `tokenize` or `split` wrote, checked when it is opened.

    Raises:
        DataError: a file is missing, truncated or altered, an older version of the pipeline wrote the folder, or
            another tokenizer made the tokens.
    """

    def __init__(self, folder: Path, mend: str) -> None:
        verify_manifest(folder, mend)
        self.folder = folder
        self.meta: dict[str, Any] = read_json(folder / META, mend)
        self.tokenizer = Tokenizer.load(folder / TOKENIZER, mend)
        try:
            made_by = self.meta["tokenizer"]["fingerprint"]
        except (KeyError, TypeError):
            raise DataError(f"{folder / META} does not describe token files: {mend}") from None
        if not isinstance(self.meta.get("params"), dict):
            raise DataError(f"{folder / META} has no params: an older version of the pipeline wrote it: {mend}")
        if made_by != self.tokenizer.fingerprint:
            raise DataError(
                f"{folder}: the tokens were made by another tokenizer ({made_by[:12]}) than the one beside "
                f"them ({self.tokenizer.fingerprint[:12]}): {mend}"
            )

    @property
    def digest(self) -> str:
        """A hash of the token files, their indexes and the tokenizer, whatever params made them."""
        files = read_json(self.folder / MANIFEST, "")["files"]
        content = {name: entry["sha256"] for name, entry in sorted(files.items()) if name != META}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def names(self) -> list[str]:
        """The token files' names, such as train, val and test."""
        return list(self.meta["files"])

    def ids(self, name: str) -> Ids:
        """The ids of NAME.bin [tokens], memory-mapped."""
        count = self.meta["files"][name]["tokens"]
        return np.memmap(self.folder / f"{name}.bin", dtype=self.meta["dtype"], mode="r", shape=(count,))

    def blocks(self, name: str, start: int, end: int) -> Iterator[Ids]:
        """The ids start … end−1 of NAME.bin, in blocks: they may not fit into memory."""
        dtype = np.dtype(self.meta["dtype"])
        for first in range(start, end, _BLOCK):
            count, offset = min(_BLOCK, end - first), first * dtype.itemsize
            yield np.fromfile(self.folder / f"{name}.bin", dtype, count, offset=offset)

    def documents(self, name: str) -> Iterator[IndexEntry]:
        """The index of NAME.bin."""
        with (self.folder / f"{name}.documents.jsonl").open(encoding="utf-8") as file:
            for line in file:
                yield IndexEntry(**json.loads(line))


def smallest_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """uint16 if every id fits, which other trainers expect; else uint32."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")
