"""The documents of a token file: the indexes of its shards as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import DataError
from pipeline.data.index import SPLITS, IndexEntry, IndexFile, Records, name_hash


@dataclass(frozen=True)
class DocumentIndex:
    """The documents of a token file, in order, in bounded memory.

    A document that continues in the next shard is one document here; its digest is a hash of its parts' digests.

    Attributes:
        folder: The folder of the file.
        stems: Its shards.
        sizes: The number of tokens in each.
        fix: The end of error messages.
    """

    folder: Path
    stems: Sequence[str]
    sizes: Sequence[int]
    fix: str

    def records(self) -> Iterator[Records]:
        """The documents' records, in blocks; `start` counts from the beginning of the first shard.

        Raises:
            DataError: an index is missing or damaged, or does not cover its shard without gaps.
        """
        end = 0
        begun: Records | None = None  # a document that continues in the next shard
        for stem, tokens in zip(self.stems, self.sizes, strict=True):
            index, start = self._file(stem), end
            for records in index.blocks(tokens):
                end = start + int(records["start"][-1] + records["tokens"][-1])
                records["start"] += np.uint64(start)
                if begun is not None:
                    if begun["name_hash"] != records["name_hash"][:1]:
                        raise self._not_continued(index)
                    records[:1], begun = _joined(begun, records[:1]), None
                going_on = np.flatnonzero(records["continues"])
                if len(going_on):
                    if (int(going_on[0]) + 1, end - start) != (len(records), tokens):
                        raise DataError(
                            f"{index.path} is damaged: a document before the last one continues in the next shard: "
                            f"{self.fix}"
                        )
                    begun, records = records[-1:], records[:-1]
                if len(records):
                    yield records
        if begun is not None:
            raise self._not_continued(self._file(self.stems[-1]))

    def _file(self, stem: str) -> IndexFile:
        return IndexFile(self.folder, stem, self.fix)

    def _not_continued(self, index: IndexFile) -> DataError:
        return DataError(
            f"{index.path} is damaged: a document that continues in the next shard does not begin it: {self.fix}"
        )

    def names(self) -> Iterator[str]:
        """The documents' names.

        Raises:
            DataError: a file is missing or damaged.
        """
        begun = False
        for stem in self.stems:
            index = self._file(stem)
            yield from islice(index.names(), int(begun), None)
            if index.count:
                begun = bool(index.read(index.count - 1, 1)["continues"][0])

    def entries(self) -> Iterator[IndexEntry]:
        """The documents with their names.

        Raises:
            DataError: a file is missing or damaged, or names and records do not match.
        """
        names = self.names()
        for records in self.records():
            rows: Any = records.tolist()
            for (start, tokens, size, hashed, digest, split, _), name in zip(rows, names, strict=False):
                if name_hash(name) != hashed:
                    raise DataError(
                        f"{self.folder} is damaged: {name!r} is not the name of the document at token {start:,} of "
                        f"{self.stems[0]}: {self.fix}"
                    )
                hexadecimal = digest.ljust(16, b"\0").hex() if digest else None
                yield IndexEntry(name, start, tokens, size, SPLITS[split - 1] if split else None, hexadecimal)
        for _ in names:  # raises an error if a file has more names than records
            pass


def _joined(begun: Records, following: Records) -> Records:
    """The record of a document from those of two consecutive parts [1]."""
    joined = following.copy()
    joined["start"] = begun["start"]
    joined["tokens"] += begun["tokens"]
    joined["bytes"] += begun["bytes"]
    digests = begun["digest"].tobytes() + following["digest"].tobytes()
    if any(digests):
        joined["digest"] = hashlib.blake2b(digests, digest_size=16).digest()
    return joined
