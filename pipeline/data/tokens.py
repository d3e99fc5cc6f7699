"""Token files: raw little-endian ids, an index of documents, the tokenizer and a meta.json, in one folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.core.errors import DataError
from pipeline.core.files import MANIFEST, read_json, verify_manifest, write_json, write_manifest
from pipeline.core.values import OPEN, STRICT, NonNegativeInt, PositiveInt, explain, read_values
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

    __pydantic_config__ = STRICT

    name: str
    start: NonNegativeInt
    tokens: PositiveInt
    bytes: NonNegativeInt
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


@dataclass(frozen=True)
class _File:
    """The numbers of a token file (`TokenWriter.summary`)."""

    tokens: PositiveInt
    documents: PositiveInt
    bytes: NonNegativeInt


@dataclass(frozen=True)
class _TokenizerInfo:
    """The tokenizer that made the ids."""

    fingerprint: str


@dataclass(frozen=True)
class _Meta:
    """What meta.json must hold."""

    __pydantic_config__ = OPEN

    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Field(gt=0)]
    tokenizer: _TokenizerInfo
    files: Annotated[dict[Annotated[str, Field(pattern="^[a-z]+$")], _File], Field(min_length=1)]
    params: dict[str, dict[str, Any]]
    xz_bits_per_byte: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = field(default_factory=dict)


_ENTRY = TypeAdapter(IndexEntry)


class TokenFolder:
    """A folder that `tokenize` or `split` wrote, checked when it is opened.

    Raises:
        DataError: a file is missing, truncated or altered, an older version of the pipeline wrote the folder,
            another tokenizer made the tokens, or the files are not what meta.json says.
    """

    def __init__(self, folder: Path, fix: str) -> None:
        verify_manifest(folder, fix)
        self.folder = folder
        self._fix = fix
        meta = read_values(folder / META, _Meta, fix)
        self._xz = meta.xz_bits_per_byte
        self.meta: dict[str, Any] = read_json(folder / META, fix)
        self.tokenizer = Tokenizer.load(folder / TOKENIZER, fix)
        tokenizer_fingerprint = meta.tokenizer.fingerprint
        if tokenizer_fingerprint != self.tokenizer.fingerprint:
            raise DataError(
                f"{folder}: another tokenizer ({tokenizer_fingerprint[:12]}) made the tokens than the one "
                f"beside them ({self.tokenizer.fingerprint[:12]}): {fix}"
            )
        self._dtype = smallest_dtype(self.tokenizer.vocab_size)
        for name, file in meta.files.items():
            self._check_file(folder / f"{name}.bin", file.tokens)

    def _check_file(self, path: Path, tokens: int) -> None:
        """Whether a token file has as many ids as meta.json says, each of them the tokenizer's."""
        size = path.stat().st_size if path.is_file() else 0
        if size != tokens * self._dtype.itemsize or self.meta["dtype"] != self._dtype.name:
            raise DataError(
                f"{path} has {size:,} bytes, and {META} has {tokens:,} tokens of {self.meta['dtype']} for a "
                f"vocabulary of {self.tokenizer.vocab_size:,}: {self._fix}"
            )
        for ids in self.blocks(path.stem, 0, tokens):
            if (largest := int(ids.max())) >= self.tokenizer.vocab_size:
                raise DataError(
                    f"{path} holds token id {largest}, but the vocabulary has {self.tokenizer.vocab_size}: "
                    f"{self._fix}"
                )

    @property
    def digest(self) -> str:
        """A hash of the token files, their indexes and the tokenizer, whatever params made them."""
        files = read_json(self.folder / MANIFEST, "")["files"]
        content = {name: entry["sha256"] for name, entry in sorted(files.items()) if name != META}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def xz_bits_per_byte(self, name: str) -> float:
        """What `split` measured of a held-out text."""
        if name not in self._xz:
            raise DataError(f"{self.folder / META} has no xz_bits_per_byte of {name}: {self._fix}")
        return self._xz[name]

    @property
    def names(self) -> list[str]:
        """The token files' names, such as train, val and test."""
        return list(self.meta["files"])

    def _summary(self, name: str) -> dict[str, int]:
        if name not in self.names:
            raise DataError(f"{self.folder / META} names no {name}: {self._fix}")
        summary: dict[str, int] = self.meta["files"][name]
        return summary

    def ids(self, name: str) -> Ids:
        """The ids of NAME.bin [tokens], memory-mapped."""
        count = self._summary(name)["tokens"]
        return np.memmap(self.folder / f"{name}.bin", dtype=self._dtype, mode="r", shape=(count,))

    def blocks(self, name: str, start: int, end: int) -> Iterator[Ids]:
        """The ids start … end−1 of NAME.bin, in blocks: they may not fit into memory."""
        for first in range(start, end, _BLOCK):
            count, offset = min(_BLOCK, end - first), first * self._dtype.itemsize
            yield np.fromfile(self.folder / f"{name}.bin", self._dtype, count, offset=offset)

    def documents(self, name: str) -> Iterator[IndexEntry]:
        """The index of NAME.bin.

        Raises:
            DataError: its documents do not follow one another from the first token to the last.
        """
        path, total, end, number = self.folder / f"{name}.documents.jsonl", self._summary(name), 0, 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = _ENTRY.validate_json(line)
                except ValidationError as error:
                    raise DataError(f"{path} line {number} is damaged ({explain(error)}): {self._fix}") from None
                if entry.start != end:
                    raise DataError(
                        f"{path} line {number} begins at token {entry.start:,}, and the document before it ends at "
                        f"{end:,}: {self._fix}"
                    )
                end = entry.end
                yield entry
        if (end, number) != (total["tokens"], total["documents"]):
            raise DataError(
                f"{path} has {number:,} documents of {end:,} tokens, and {META} says {total['documents']:,} of "
                f"{total['tokens']:,}: {self._fix}"
            )


def smallest_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """uint16 if every id fits, which other trainers expect; else uint32."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")
