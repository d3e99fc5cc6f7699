"""Folders of token files: raw little-endian ids, indexes of documents, the tokenizer and meta.json."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from pipeline.core.errors import DataError
from pipeline.core.files import (
    MANIFEST,
    FileEntry,
    located_files,
    manifest_entries,
    read_json,
    verify_manifest,
    write_json,
    write_manifest,
)
from pipeline.core.values import OPEN, NonNegativeInt, PositiveInt, read_values
from pipeline.core.verified import folder_state, hashing, record_verified, verified_files
from pipeline.data.documents import DocumentIndex
from pipeline.data.index import IndexEntry, IndexWriter
from pipeline.data.joined import AnyIds, Ids, JoinedIds, check_ids, parts
from pipeline.data.segments import SEGMENTS, SegmentFile
from pipeline.data.tokenizer import Tokenizer

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]

_BLOCK = 1 << 18
_MOST_WAITING = 1 << 12
"""The number of arrays that wait to be written; a small array needs some 100 bytes more than its ids."""

TOKENIZER = "tokenizer.json"
META = "meta.json"


class TokenWriter(AbstractContextManager["TokenWriter"]):
    """Writes STEM.bin, raw ids, and its index in bounded memory.

    Attributes:
        tokens: The number of tokens.
        documents: The number of documents that end in this file.
        text_bytes: The size of their text in UTF-8.
        counts: How often each id occurs, int64 [V]; complete when the writer is closed.
    """

    def __init__(self, folder: Path, stem: str, tokenizer: Tokenizer) -> None:
        self.tokens = self.documents = self.text_bytes = 0
        self.counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._dtype = smallest_dtype(tokenizer.vocab_size)
        self._start = self._waiting_tokens = 0
        self._waiting: list[Ids] = []
        self._path = folder / f"{stem}.bin"
        self._ids = self._path.open("wb")
        self._index = IndexWriter(folder, stem)

    def write(self, ids: Ids) -> None:
        """Appends ids to the current document.

        Raises:
            DataError: an id is not in the vocabulary; perhaps only later, or when the writer is closed.
        """
        self._waiting.append(ids)
        self.tokens += len(ids)
        self._waiting_tokens += len(ids)
        if self._waiting_tokens >= _BLOCK or len(self._waiting) >= _MOST_WAITING:
            self._flush()

    def _flush(self) -> None:
        """Checks, counts and writes the ids that wait: one pass over many, because each pass costs O(V)."""
        if self._waiting_tokens:
            ids = np.concatenate(self._waiting)
            check_ids(ids, len(self.counts), self._path.name, "run `python -m pipeline tokenize`")
            self.counts += np.bincount(ids, minlength=len(self.counts))
            self._ids.write(ids.astype(self._dtype, copy=False).data)
        self._waiting, self._waiting_tokens = [], 0

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
            continues: Whether the document goes on at the beginning of the next shard, under the same name.
        """
        if self.tokens > self._start:
            tokens = self.tokens - self._start
            self._index.add(IndexEntry(name, self._start, tokens, text_bytes, split, digest), continues)
            self.documents += not continues
            self.text_bytes += text_bytes
        self._start = self.tokens

    def summary(self) -> dict[str, int]:
        """The numbers of tokens, documents and bytes, for meta.json; those of shards add up."""
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.text_bytes}

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._ids, self._index:
            if kind is None:
                self._flush()


def shard_stem(name: str, number: int, count: int) -> str:
    """The STEM of a shard: "tokens-00000-of-00003"."""
    return f"{name}-{number:05}-of-{count:05}"


def finish_folder(
    folder: Path,
    tokenizer: Tokenizer,
    files: Mapping[str, Mapping[str, int]],
    *,
    params: Mapping[str, Any],
    counts: Mapping[str, Counts] | None = None,
    known: Mapping[str, FileEntry] | None = None,
    **more: Any,
) -> None:
    """Writes the tokenizer, meta.json, counts and the manifest beside the token files.

    Args:
        folder: The folder.
        tokenizer: The tokenizer of the ids.
        files: For each file its `TokenWriter.summary`, or the sum of its shards' summaries and the number of its
            `shards`.
        params: The effective params that produced the files, by section.
        counts: For some files how often each id occurs, [V]: NAME.counts.npy.
        known: The manifest's entries of files whose digests are known.
        more: Further keys of meta.json.
    """
    tokenizer.save(folder / TOKENIZER)
    for name, each in (counts or {}).items():
        np.save(folder / f"{name}.counts.npy", each)
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
    size = sum(path.stat().st_size for path in folder.glob("*") if path.name not in (known or {}))
    with hashing(size) as read:
        write_manifest(folder, known, read)
    record_verified(folder, folder_state(folder))


@dataclass(frozen=True)
class _File:
    """The `TokenWriter.summary` of a token file, and the number of its shards; 0 for a plain file, NAME.bin."""

    tokens: PositiveInt
    documents: PositiveInt
    bytes: NonNegativeInt
    shards: NonNegativeInt = 0


@dataclass(frozen=True)
class _SegmentsOf:
    """The folder of which train is a list of segments, relative to this one, and its digest."""

    folder: str
    digest: str


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
    segments_of: _SegmentsOf | None = None
    xz_bits_per_byte: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = field(default_factory=dict)


class TokenFolder:
    """A folder that `tokenize` or `split` wrote; opening it checks all files.

    Of a large corpus, train is a list of segments of the tokens in another folder, which is opened as well.

    Raises:
        DataError: a file is missing or corrupt, an earlier version wrote the folder, the tokens belong to another
            tokenizer, or the files contradict meta.json.
    """

    def __init__(self, folder: Path, fix: str, hashes: bool = True) -> None:
        """
        Args:
            folder: The folder.
            fix: The end of error messages.
            hashes: False to check only that the files are there and have their sizes.
        """
        sizes = {name: path.stat().st_size for name, path in located_files(folder).items() if path.is_file()}
        unread = (verified_files(folder) if sizes else ()) if hashes else sizes.keys()
        state = folder_state(folder) if hashes else None
        with hashing(sum(size for name, size in sizes.items() if name not in unread)) as read:
            verify_manifest(folder, fix, unread, read)
        record_verified(folder, state)
        self.folder = folder
        self._entries = manifest_entries(folder, fix)
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
        self._files = meta.files
        self._stems: dict[str, list[str]] = {}
        self._sizes: dict[str, list[int]] = {}
        """The number of tokens in each shard of a file."""
        self._segments: SegmentFile | None = None
        for name, file in meta.files.items():
            if name == "train" and meta.segments_of is not None:
                source = TokenFolder(Path(os.path.normpath(folder / meta.segments_of.folder)), fix, hashes)
                if source.digest != meta.segments_of.digest:
                    raise DataError(f"{source.folder} is not what {folder} was made of: {fix}")
                self._segments = SegmentFile(folder / SEGMENTS, source, file.tokens, fix)
                continue
            self._stems[name] = [shard_stem(name, each, file.shards) for each in range(file.shards)] or [name]
            self._sizes[name] = [self._size(self._bin(stem)) // self._dtype.itemsize for stem in self._stems[name]]
            self._check_sizes(name, file.tokens)

    def _bin(self, stem: str) -> Path:
        name = f"{stem}.bin"
        entry = self._entries.get(name)
        return entry.located(self.folder, name) if entry else self.folder / name

    def _size(self, path: Path) -> int:
        return path.stat().st_size if path.is_file() else 0

    def _check_sizes(self, name: str, tokens: int) -> None:
        """Checks the size of a file, of all its shards, against meta.json."""
        size = sum(self._size(self._bin(stem)) for stem in self._stems[name])
        if size != tokens * self._dtype.itemsize or self.meta["dtype"] != self._dtype.name:
            shown = (
                self._bin(self._stems[name][0]) if len(self._stems[name]) == 1 else self.folder / f"{name}-*.bin"
            )
            raise DataError(
                f"{shown} has {size:,} bytes, but {META} says {tokens:,} tokens of {self.meta['dtype']} for a "
                f"vocabulary of {self.tokenizer.vocab_size:,}: {self._fix}"
            )

    @property
    def digest(self) -> str:
        """A hash of the token files, their indexes and the tokenizer, but not of params."""
        files = read_json(self.folder / MANIFEST, "")["files"]
        content = {name: entry["sha256"] for name, entry in sorted(files.items()) if name != META}
        if self._segments:
            content["segments of"] = self._segments.source.digest
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

    def _file(self, name: str) -> _File:
        if name not in self._files:
            raise DataError(f"{self.folder / META} lists no {name}: {self._fix}")
        return self._files[name]

    def id_file(self, name: str) -> Path:
        """The file of a split's ids, or of its segments."""
        return self.folder / SEGMENTS if name == "train" and self._segments else self._bin(name)

    def ids(self, name: str) -> AnyIds:
        """The ids of a file [tokens], read where they are asked for. A slice is an array."""
        self._file(name)
        if name == "train" and self._segments:
            return self._segments.ids
        files, sizes = [self._bin(stem) for stem in self._stems[name]], self._sizes[name]
        if len(files) == 1:
            return np.memmap(files[0], dtype=self._dtype, mode="r", shape=(sizes[0],)).view(np.ndarray)
        return JoinedIds(files, sizes, self._dtype)

    def blocks(self, name: str, start: int, end: int) -> Iterator[Ids]:
        """The ids start … end−1 of a file, in blocks, for texts that do not fit into memory."""
        bounds = np.cumsum([0, *self._sizes[name]], dtype=np.int64)
        for shard, first, last in parts(bounds, start, end):
            path = self._bin(self._stems[name][shard])
            for begin in range(first, last, _BLOCK):
                offset = begin * self._dtype.itemsize
                yield np.fromfile(path, self._dtype, min(_BLOCK, last - begin), offset=offset)

    def counts(self, name: str) -> Counts:
        """How often each id occurs in a file that has NAME.counts.npy [V].

        Raises:
            DataError: it is missing or damaged.
        """
        path, tokens = self.folder / f"{name}.counts.npy", self._file(name).tokens
        if not path.is_file():
            raise DataError(f"{path} is missing: {self._fix}")
        try:
            counts: Counts = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is damaged ({' '.join(str(error).split())}): {self._fix}") from None
        if counts.dtype != np.int64 or counts.shape != (self.tokenizer.vocab_size,) or int(counts.sum()) != tokens:
            raise DataError(
                f"{path} is damaged (it does not count {tokens:,} tokens of {self.tokenizer.vocab_size:,} ids): "
                f"{self._fix}"
            )
        return counts

    def index(self, name: str) -> DocumentIndex:
        """The index of a file's documents."""
        self._file(name)
        return DocumentIndex(self.folder, self._stems[name], self._sizes[name], self._fix)

    def documents(self, name: str) -> Iterator[IndexEntry]:
        """The index entries of a file's documents, in order.

        Raises:
            DataError: the index or the names are damaged or missing, or do not match each other or meta.json.
        """
        self._file(name)
        found = 0
        segments = self._segments if name == "train" else None
        for entry in segments.documents() if segments else self.index(name).entries():
            found += 1
            yield entry
        self.check_documents(name, found)

    def check_documents(self, name: str, found: int) -> None:
        """Raises DataError unless `found`, the number of documents in the index of a file, is that of meta.json."""
        if found != (expected := self._file(name).documents):
            raise DataError(
                f"the index of {name} in {self.folder} has {found:,} documents, but {META} says {expected:,}: "
                f"{self._fix}"
            )


def smallest_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """uint16 if all ids fit, as other trainers expect; otherwise uint32."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")
