"""The index of a token file: a record per document in STEM.idx.npy, and its name in STEM.names.jsonl."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from pipeline.core.errors import DataError
from pipeline.data.npy import npy_errors

SPLITS = ("train", "val", "test")
RECORD = np.dtype(
    [
        ("start", "<u8"),
        ("tokens", "<u8"),
        ("bytes", "<u8"),
        ("name_hash", "<u8"),
        ("digest", "S16"),
        ("split", "u1"),
        ("continues", "u1"),
    ]
)
"""A document in a token file: the offset of its first token, the number of its tokens (end-of-text included), the
size of its text in UTF-8, `name_hash` of its name, the digest of its text (zeros for none), its split (0 for none,
else 1 plus the index in SPLITS), and 1 if it continues in the next shard."""

Records = np.ndarray[tuple[int], np.dtype[np.void]]

_RECORDS = 1 << 14
"""The number of records in memory at a time."""


@dataclass(frozen=True)
class IndexEntry:
    """The location of a document, or of its part in one split, in a token file.

    Attributes:
        name: The document's name.
        start: The offset of its first token.
        tokens: The number of its tokens, including end-of-text.
        bytes: The size of its text in UTF-8.
        split: The split that the corpus assigns, if any.
        digest: A hash of its text without white space, hexadecimal, to find duplicates; None if it is blank or cut.
    """

    name: str
    start: int
    tokens: int
    bytes: int
    split: str | None = None
    digest: str | None = None

    @property
    def end(self) -> int:
        """The offset after its last token."""
        return self.start + self.tokens


def name_hash(name: str) -> int:
    """A hash of a document's name, 64 bits."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def index_path(folder: Path, stem: str) -> Path:
    """The file of the records."""
    return folder / f"{stem}.idx.npy"


def names_path(folder: Path, stem: str) -> Path:
    """The file of the names, a JSON string per line."""
    return folder / f"{stem}.names.jsonl"


class IndexWriter(AbstractContextManager["IndexWriter"]):
    """Writes STEM.idx.npy and STEM.names.jsonl in bounded memory."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._count = 0
        self._waiting: list[tuple[object, ...]] = []
        self._records = index_path(folder, stem).open("wb")
        self._names = names_path(folder, stem).open("w", encoding="utf-8")
        self._write_header()

    def _write_header(self) -> None:
        """Writes the header of the .npy file; NumPy pads it, so that its size is the same for any count."""
        header = {"descr": npy.dtype_to_descr(RECORD), "fortran_order": False, "shape": (self._count,)}
        npy.write_array_header_1_0(self._records, header)

    def add(self, entry: IndexEntry, continues: bool) -> None:
        """Appends a document."""
        digest = bytes.fromhex(entry.digest or "")
        split = SPLITS.index(entry.split) + 1 if entry.split else 0
        self._waiting.append(
            (entry.start, entry.tokens, entry.bytes, name_hash(entry.name), digest, split, continues)
        )
        self._names.write(json.dumps(entry.name, ensure_ascii=False) + "\n")
        if len(self._waiting) >= _RECORDS:
            self._flush()

    def _flush(self) -> None:
        self._records.write(np.array(self._waiting, dtype=RECORD).tobytes())
        self._count += len(self._waiting)
        self._waiting.clear()

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._records.seek(0)
        self._write_header()
        self._records.close()
        self._names.close()


class IndexFile:
    """Reads STEM.idx.npy and STEM.names.jsonl, in bounded memory. `fix` ends the error messages.

    Attributes:
        path: The file of the records.
        count: Their number.

    Raises:
        DataError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, stem: str, fix: str) -> None:
        self.path, self._names, self._fix = index_path(folder, stem), names_path(folder, stem), fix
        for path in (self.path, self._names):
            if not path.is_file():
                raise DataError(f"{path} is missing: {fix}")
        with npy_errors(self.path, fix):
            with self.path.open("rb") as file:
                if npy.read_magic(file) != (1, 0):
                    raise ValueError("another version of the format")
                (self.count,), _, dtype = npy.read_array_header_1_0(file)
                self._offset = file.tell()
            if dtype != RECORD:
                raise ValueError("other fields")
            if self.path.stat().st_size != self._offset + self.count * RECORD.itemsize:
                raise ValueError(f"{self.count:,} records and another size")

    def read(self, first: int, count: int) -> Records:
        """The records first … first+count−1."""
        offset = self._offset + first * RECORD.itemsize
        return np.fromfile(self.path, RECORD, count, offset=offset)

    def blocks(self, tokens: int) -> Iterator[Records]:
        """All records of a file with `tokens` tokens, in blocks.

        Raises:
            DataError: they do not cover the file without gaps.
        """
        end = 0
        for first in range(0, self.count, _RECORDS):
            records = self.read(first, min(_RECORDS, self.count - first))
            ends = np.uint64(end) + np.cumsum(records["tokens"])
            wrong = (records["tokens"] == 0) | (records["tokens"] > tokens) | (records["split"] > len(SPLITS))
            wrong |= (records["start"] != ends - records["tokens"]) | (records["continues"] > 1)
            if wrong.any():
                number = int(wrong.argmax())
                raise DataError(
                    f"{self.path} is damaged: record {first + number:,} starts at token "
                    f"{int(records['start'][number]):,} and has {int(records['tokens'][number]):,} tokens, but the "
                    f"previous document ends at {int(ends[number] - records['tokens'][number]):,}: {self._fix}"
                )
            end = int(ends[-1])
            yield records
        if end != tokens:
            raise DataError(
                f"{self.path} has {self.count:,} records with {end:,} tokens, but there are {tokens:,}: {self._fix}"
            )

    def names(self) -> Iterator[str]:
        """The name of each record, in order.

        Raises:
            DataError: a line is damaged, or there are more or fewer names than records.
        """
        number = 0
        with self._names.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    name: Any = json.loads(line)
                    if not isinstance(name, str):
                        raise ValueError("not a string")
                    name.encode()
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{self._names} line {number} is damaged ({error}): {self._fix}") from None
                yield name
        if number != self.count:
            raise DataError(
                f"{self._names} has {number:,} names, but {self.path.name} {self.count:,} records: {self._fix}"
            )
