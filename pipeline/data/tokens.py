"""Folders of token files: raw little-endian ids, indexes of documents, the tokenizer and meta.json."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
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
from pipeline.data.index import IndexEntry
from pipeline.data.joined import AnyIds, Ids, JoinedIds, parts
from pipeline.data.masked import Learn, MaskedIds
from pipeline.data.npy import npy_errors
from pipeline.data.segments import SEGMENTS, SegmentFile
from pipeline.data.token_writer import Counts, learn_name, shard_stem, smallest_dtype
from pipeline.data.tokenizer import Tokenizer

_BLOCK = 1 << 18

_BYTE = np.dtype(np.uint8)

TOKENIZER = "tokenizer.json"
META = "meta.json"


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
        folder, tokenizer: The folder, and the tokenizer of its ids.
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
    learnt: NonNegativeInt | None = None


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
        """`fix` ends the error messages. Without `hashes`, only the files' sizes are checked."""
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
        self._meta = meta
        self.meta: dict[str, Any] = read_json(folder / META, fix)
        self.tokenizer = Tokenizer.load(folder / TOKENIZER, fix)
        if meta.tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise DataError(
                f"{folder}: another tokenizer ({meta.tokenizer.fingerprint[:12]}) made the tokens than the one "
                f"beside them ({self.tokenizer.fingerprint[:12]}): {fix}"
            )
        self._dtype = smallest_dtype(self.tokenizer.vocab_size)
        self._stems: dict[str, list[str]] = {}
        self._sizes: dict[str, list[int]] = {}
        """The number of tokens in each shard of a file."""
        self._segments: SegmentFile | None = None
        for name, file in meta.files.items():
            if name == "train" and meta.segments_of is not None:
                source = TokenFolder(Path(os.path.normpath(folder / meta.segments_of.folder)), fix, hashes)
                if source.digest != meta.segments_of.digest:
                    raise DataError(f"{source.folder} is not what {folder} was made of: {fix}")
                if (file.learnt is None) == source.has_mask("tokens"):
                    raise DataError(f"{folder / META}: train and {source.folder} differ in what is learnt: {fix}")
                self._segments = SegmentFile(folder / SEGMENTS, source, file.tokens, fix)
                continue
            self._stems[name] = [shard_stem(name, each, file.shards) for each in range(file.shards)] or [name]
            self._sizes[name] = [self._size(self._bin(stem)) // self._dtype.itemsize for stem in self._stems[name]]
            self._check_sizes(name, file.tokens)
            self._check_learn(name)

    def _bin(self, stem: str) -> Path:
        return self._located(f"{stem}.bin") or self.folder / f"{stem}.bin"

    def _located(self, name: str) -> Path | None:
        """The path of a file; None if the manifest does not list it."""
        entry = self._entries.get(name)
        return entry.located(self.folder, name) if entry else None

    def _size(self, path: Path) -> int:
        return path.stat().st_size if path.is_file() else 0

    def _check_sizes(self, name: str, tokens: int) -> None:
        """Checks the size of a file, of all its shards, against meta.json."""
        size = sum(self._size(self._bin(stem)) for stem in self._stems[name])
        if size != tokens * self._dtype.itemsize or self._meta.dtype != self._dtype.name:
            shown = (
                self._bin(self._stems[name][0]) if len(self._stems[name]) == 1 else self.folder / f"{name}-*.bin"
            )
            raise DataError(
                f"{shown} has {size:,} bytes, but {META} says {tokens:,} tokens of {self._meta.dtype} for a "
                f"vocabulary of {self.tokenizer.vocab_size:,}: {self._fix}"
            )

    def _check_learn(self, name: str) -> None:
        """Checks the files that say which tokens are learnt against meta.json."""
        found = False
        for stem, tokens in zip(self._stems[name], self._sizes[name], strict=True):
            path = self._located(learn_name(stem))
            found = found or path is not None
            if path and (size := self._size(path)) != tokens:
                raise DataError(f"{path} has {size:,} bytes, but there are {tokens:,} tokens: {self._fix}")
        if found != self.has_mask(name):
            shown = self.folder / learn_name(self._stems[name][0])
            raise DataError(f"{shown} is {'there' if found else 'missing'}, but {META} says otherwise: {self._fix}")

    @property
    def digest(self) -> str:
        """A hash of the token files, their indexes and the tokenizer, but not of params."""
        files = read_json(self.folder / MANIFEST, "")["files"]
        content = {name: entry["sha256"] for name, entry in sorted(files.items()) if name != META}
        if self._segments:
            content["segments of"] = self._segments.source.digest
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def xz_bits_per_byte(self, name: str) -> float | None:
        """The xz baseline of a held-out split, as measured by the stage split; None if only a part is learnt."""
        if any(file.learnt is not None for file in self._meta.files.values()):
            return None
        if name not in self._meta.xz_bits_per_byte:
            raise DataError(f"{self.folder / META} has no xz_bits_per_byte of {name}: {self._fix}")
        return self._meta.xz_bits_per_byte[name]

    @property
    def names(self) -> list[str]:
        """The names of the token files, such as train, val and test."""
        return list(self._meta.files)

    def _file(self, name: str) -> _File:
        if name not in self._meta.files:
            raise DataError(f"{self.folder / META} lists no {name}: {self._fix}")
        return self._meta.files[name]

    def id_file(self, name: str) -> Path:
        """The file of a split's ids, or of its segments."""
        return self.folder / SEGMENTS if name == "train" and self._segments else self._bin(name)

    def ids(self, name: str) -> AnyIds:
        """The ids of a file [tokens], read where they are asked for. A slice is an array."""
        self._file(name)
        if name == "train" and self._segments:
            return self._segments.ids
        return self._joined([self._bin(stem) for stem in self._stems[name]], self._sizes[name], self._dtype)

    def _joined(self, files: Sequence[Path | None], sizes: Sequence[int], dtype: np.dtype[Any]) -> AnyIds:
        if len(files) == 1 and files[0]:
            return np.memmap(files[0], dtype=dtype, mode="r", shape=(sizes[0],)).view(np.ndarray)
        return JoinedIds(files, sizes, dtype)

    def has_mask(self, name: str) -> bool:
        """Whether some tokens of a file are only read."""
        return self._file(name).learnt is not None

    def masked(self, name: str) -> MaskedIds:
        """The ids of a file, and which of them are learnt."""
        return MaskedIds(self.ids(name), self._learn(name) if self.has_mask(name) else None)

    def _learn(self, name: str) -> AnyIds:
        """Which tokens of a file are learnt [tokens], uint8."""
        if name == "train" and self._segments:
            return self._segments.learn
        files = [self._located(learn_name(stem)) for stem in self._stems[name]]
        return self._joined(files, self._sizes[name], _BYTE)

    def blocks(self, name: str, start: int, end: int) -> Iterator[Ids]:
        """The ids start … end−1 of a file, in blocks, for texts that do not fit into memory."""
        return (ids for ids, _ in self.masked_blocks(name, start, end))

    def masked_blocks(self, name: str, start: int, end: int) -> Iterator[tuple[Ids, Learn | None]]:
        """The blocks of ids, each with which of them are learnt (None: all)."""
        bounds = np.cumsum([0, *self._sizes[name]], dtype=np.int64)
        for shard, first, last in parts(bounds, start, end):
            stem = self._stems[name][shard]
            path, learn_path = self._bin(stem), self._located(learn_name(stem))
            for begin in range(first, last, _BLOCK):
                count = min(_BLOCK, last - begin)
                ids = np.fromfile(path, self._dtype, count, offset=begin * self._dtype.itemsize)
                yield ids, np.fromfile(learn_path, np.uint8, count, offset=begin) if learn_path else None

    def counts(self, name: str) -> Counts:
        """How often each id occurs in a file that has NAME.counts.npy [V].

        Raises:
            DataError: it is missing or damaged.
        """
        path, tokens = self.folder / f"{name}.counts.npy", self._file(name).tokens
        if not path.is_file():
            raise DataError(f"{path} is missing: {self._fix}")
        with npy_errors(path, self._fix):
            counts: Counts = np.load(path, allow_pickle=False)
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
