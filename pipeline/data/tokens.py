"""Folders of token files: raw little-endian ids, indexes of documents, the tokenizer and meta.json."""

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
    """The location of a document, or of its part in one split, in a token file.

    Attributes:
        name: The document's name.
        start: The offset of its first token.
        tokens: The number of its tokens, including end-of-text.
        bytes: The size of its text in UTF-8.
        split: The split that the corpus assigns, if any.
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
        """The offset after its last token."""
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
        """Ends the current document. A document without tokens gets no index entry."""
        if self.tokens > self._start:
            entry = IndexEntry(name, self._start, self.tokens - self._start, text_bytes, split, digest)
            self._index.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
            self.documents += 1
            self.text_bytes += text_bytes
        self._start = self.tokens

    def summary(self) -> dict[str, int]:
        """The numbers of tokens, documents and bytes, for meta.json."""
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.text_bytes}

    def __exit__(self, *error: object) -> None:
        self._ids.close()
        self._index.close()


def finish_folder(
    folder: Path, tokenizer: Tokenizer, files: dict[str, dict[str, int]], *, params: Mapping[str, Any], **more: Any
) -> None:
    """Writes the tokenizer, meta.json and the manifest beside the token files.

    meta.json holds the `TokenWriter.summary` of each file, the effective `params` that produced the files, by
    section, and the keys of `more`.
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
    """The `TokenWriter.summary` of a token file."""

    tokens: PositiveInt
    documents: PositiveInt
    bytes: NonNegativeInt


@dataclass(frozen=True)
class _TokenizerInfo:
    """The tokenizer that produced the ids."""

    fingerprint: str


@dataclass(frozen=True)
class _Meta:
    """The required content of meta.json."""

    __pydantic_config__ = OPEN

    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Field(gt=0)]
    tokenizer: _TokenizerInfo
    files: Annotated[dict[Annotated[str, Field(pattern="^[a-z]+$")], _File], Field(min_length=1)]
    params: dict[str, dict[str, Any]]
    xz_bits_per_byte: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = field(default_factory=dict)


_ENTRY = TypeAdapter(IndexEntry)


class TokenFolder:
    """A folder that `tokenize` or `split` wrote; opening it checks all files. `fix` ends the error messages.

    Raises:
        DataError: a file is missing or corrupt, an earlier version wrote the folder, the tokens belong to another
            tokenizer, or the files contradict meta.json.
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
        """Checks the size of a token file against meta.json, and its ids against the vocabulary."""
        size = path.stat().st_size if path.is_file() else 0
        if size != tokens * self._dtype.itemsize or self.meta["dtype"] != self._dtype.name:
            raise DataError(
                f"{path} has {size:,} bytes, but {META} says {tokens:,} tokens of {self.meta['dtype']} for a "
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
        """A hash of the token files, their indexes and the tokenizer, but not of params."""
        files = read_json(self.folder / MANIFEST, "")["files"]
        content = {name: entry["sha256"] for name, entry in sorted(files.items()) if name != META}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def xz_bits_per_byte(self, name: str) -> float:
        """The xz baseline of a held-out split, as measured by the stage split."""
        if name not in self._xz:
            raise DataError(f"{self.folder / META} has no xz_bits_per_byte of {name}: {self._fix}")
        return self._xz[name]

    @property
    def names(self) -> list[str]:
        """The names of the token files, such as train, val and test."""
        return list(self.meta["files"])

    def _summary(self, name: str) -> dict[str, int]:
        if name not in self.names:
            raise DataError(f"{self.folder / META} lists no {name}: {self._fix}")
        summary: dict[str, int] = self.meta["files"][name]
        return summary

    def ids(self, name: str) -> Ids:
        """The ids of NAME.bin [tokens], memory-mapped."""
        count = self._summary(name)["tokens"]
        return np.memmap(self.folder / f"{name}.bin", dtype=self._dtype, mode="r", shape=(count,))

    def blocks(self, name: str, start: int, end: int) -> Iterator[Ids]:
        """The ids start … end−1 of NAME.bin, in blocks, for texts that do not fit into memory."""
        for first in range(start, end, _BLOCK):
            count, offset = min(_BLOCK, end - first), first * self._dtype.itemsize
            yield np.fromfile(self.folder / f"{name}.bin", self._dtype, count, offset=offset)

    def documents(self, name: str) -> Iterator[IndexEntry]:
        """The index entries of NAME.bin, in order.

        Raises:
            DataError: the entries do not cover the file without gaps.
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
                        f"{path} line {number} starts at token {entry.start:,}, but the previous document ends at "
                        f"{end:,}: {self._fix}"
                    )
                end = entry.end
                yield entry
        if (end, number) != (total["tokens"], total["documents"]):
            raise DataError(
                f"{path} has {number:,} documents with {end:,} tokens, but {META} says {total['documents']:,} with "
                f"{total['tokens']:,}: {self._fix}"
            )


def smallest_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """uint16 if all ids fit, as other trainers expect; otherwise uint32."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")
