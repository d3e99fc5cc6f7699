"""The formats of token files: where the ids are, their type, and where documents end."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Ids = np.ndarray[Any, Any]

_PACKED = (".gz", ".zst", ".xz", ".bz2", ".zip")
_IDS = 1 << 18
"""Ids per block."""
_HEADER = np.dtype(("<i4", 256))
_HEADERS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
"""The magic number and version of llm.c's token files (the first is also modded-nanogpt's), and their type."""
_NO_TOKENS = {20240326: "a model", 20240327: "a training state", 20240328: "a tokenizer", 20240522: "an evaluation"}
"""The magic numbers of other files of llm.c."""
_ROWS = 256


@dataclass(frozen=True)
class Settings:
    """The options that formats need.

    Attributes:
        dtype: The type of ids in files that do not say it.
        end_of_text: The id that separates documents.
        column: The column of .parquet files.
    """

    dtype: str
    end_of_text: int
    column: str


@dataclass(frozen=True)
class Span:
    """Consecutive ids of a file, in blocks; can be iterated repeatedly.

    Attributes:
        path: The file.
        dtype: The type of an id.
        offset: The bytes before the first id.
        count: The number of ids.
    """

    path: Path
    dtype: np.dtype[Any]
    offset: int
    count: int

    def __iter__(self) -> Iterator[Ids]:
        for start in range(0, self.count, _IDS):
            count = min(_IDS, self.count - start)
            ids = np.fromfile(self.path, self.dtype, count, offset=self.offset + start * self.dtype.itemsize)
            if len(ids) < count:
                raise ValueError(f"{self.path} became shorter while it was read: copy the complete file again")
            yield ids

    def part(self, start: int, end: int) -> "Span":
        """The ids start … end−1."""
        return Span(self.path, self.dtype, self.offset + start * self.dtype.itemsize, end - start)


def documents(path: Path, settings: Settings, start: int, end: int) -> Iterator[Iterable[Ids]]:
    """The ids of each document of a file, in blocks, without the end-of-text id; empty documents are left out.

    Args:
        path: The file.
        settings: The options.
        start, end: The range of bytes: the whole file, or from one of `cuts` to another.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or has no token ids; the message has `path`.
    """
    if path.suffix.lower() == ".parquet":
        yield from _rows(path, settings)
        return
    span, ends = _open(path, settings)
    first, last = ((max(place, span.offset) - span.offset) // span.dtype.itemsize for place in (start, end))
    if ends is not None:
        ends = ends[(ends > first) & (ends <= last)] - first
    yield from _divided(span.part(first, last), settings.end_of_text, ends)


def cuts(path: Path, settings: Settings, size: int) -> Iterator[int]:
    """The offsets in bytes at which a file is cut into ranges of about `size` bytes: there, a document ends."""
    if path.suffix.lower() == ".parquet":
        return
    span, ends = _open(path, settings)
    step = size // span.dtype.itemsize
    for start in range(step, span.count - step + 1, step) if step else ():
        if ends is not None:
            after = np.searchsorted(ends, start)
            end = int(ends[after]) if after < len(ends) else span.count
            found = end if end < start + step else None
        else:
            found = _end_after(span.part(start, start + step), settings.end_of_text)
            found = None if found is None else start + found
        if found is not None and found < span.count:
            yield span.offset + found * span.dtype.itemsize


def _end_after(span: Span, end_of_text: int) -> int | None:
    """The number of ids up to the first end-of-text id, and with it; None if there is none."""
    before = 0
    for block in span:
        places = np.flatnonzero(block == end_of_text)
        if len(places):
            return before + int(places[0]) + 1
        before += len(block)
    return None


def _open(path: Path, settings: Settings) -> tuple[Span, Ids | None]:
    """Where the ids of a file are, and where its documents end if the format says it."""
    match path.suffix.lower():
        case ending if ending in _PACKED:
            raise ValueError(f"{path} is compressed: unpack it")
        case ".ds":
            return _datatrove(path, settings.dtype)
        case ".npy":
            return _array(path, settings), None
        case _:
            return _raw(path, settings), None


def _damaged(path: Path, kind: str, error: object) -> ValueError:
    why = " ".join(str(error).split())
    return ValueError(f"{path} is truncated, damaged or no {kind} file ({why}): copy it again")


def _divided(span: Span, end_of_text: int, ends: Ids | None = None) -> Iterator[Iterable[Ids]]:
    """The documents of a file, which end at each end-of-text id, and at `ends` (numbers of ids)."""
    start = first = 0
    for block in span:
        cuts = first + 1 + np.flatnonzero(block == end_of_text)
        if ends is not None:
            low, high = np.searchsorted(ends, [first, first + len(block)], "right")
            cuts = np.union1d(cuts, ends[low:high].astype(np.int64))
        for stop in cuts.tolist():
            end = stop - int(block[stop - 1 - first] == end_of_text)
            if start < end:
                yield [block[start - first : end - first]] if start >= first else span.part(start, end)
            start = stop
        first += len(block)
    if start < span.count:
        yield span.part(start, span.count)


# ── .bin ──────────────────────────────────────────────────────────────────────────────────────────


def _raw(path: Path, settings: Settings) -> Span:
    """nanoGPT's .bin (ids only), or one with the header of llm.c."""
    size, header = path.stat().st_size, np.fromfile(path, "<i4", 256)
    for order, numbers in (("", header), ("big-endian, ", header.byteswap())):
        magic, version, count = (int(each) for each in [*numbers[:3], 0, 0, 0][:3])
        if magic in _NO_TOKENS:
            raise ValueError(f"{path} is {_NO_TOKENS[magic]} of llm.c, no text: move it out of data/raw")
        if magic not in {known for known, _ in _HEADERS}:
            continue
        found = _HEADERS.get((magic, version))
        if order or found is None:
            known = ", ".join(f"{magic} version {version}" for magic, version in _HEADERS)
            raise ValueError(f"{path} has the header {order}{magic} version {version}: only {known} can be read")
        kind = np.dtype(found)
        if size != _HEADER.itemsize + count * kind.itemsize:
            raise ValueError(
                f"{path} has {size:,} bytes, but with the {count:,} tokens that its header says it would have "
                f"{_HEADER.itemsize + count * kind.itemsize:,}: copy the complete file again"
            )
        return Span(path, kind, _HEADER.itemsize, count)
    wide = "tokenize.corpus.token_files.dtype: uint32"
    if settings.dtype == "uint16" and settings.end_of_text >= 1 << 16:
        raise ValueError(f"{path}: uint16 cannot hold the end-of-text id {settings.end_of_text}: set {wide}")
    if settings.dtype == "uint16" and len(header) >= 4 and not (header >> 16).any():
        raise ValueError(f"{path}: every second number is 0, so that they seem to be uint32: set {wide}")
    return _whole(path, settings.dtype)


def _whole(path: Path, dtype: str) -> Span:
    """All of a file is ids."""
    kind, size = np.dtype(dtype).newbyteorder("<"), path.stat().st_size
    if size % kind.itemsize:
        raise ValueError(
            f"{path} has {size:,} bytes, which is no whole number of {dtype}: copy the complete file again, or set "
            "tokenize.corpus.token_files.dtype"
        )
    return Span(path, kind, 0, size // kind.itemsize)


# ── .npy ──────────────────────────────────────────────────────────────────────────────────────────


def _array(path: Path, settings: Settings) -> Span:
    """An array of ids, of any type of integer and byte order; OLMo's .npy are ids only, without numpy's header."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic[:2] == b"PK":
        raise ValueError(f"{path} is an .npz, which holds several arrays: save them one by one")
    if magic != b"\x93NUMPY":
        return _raw(path, settings)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _damaged(path, ".npy", error) from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        shape = "×".join(map(str, array.shape))
        raise ValueError(f"{path} is an array of {shape or 1} {array.dtype}: one dimension of integers is meant")
    size = path.stat().st_size
    if size != array.offset + array.nbytes:
        raise _damaged(path, ".npy", f"{size:,} bytes instead of {array.offset + array.nbytes:,}")
    return Span(path, array.dtype, array.offset, len(array))


# ── .ds ───────────────────────────────────────────────────────────────────────────────────────────


def maker(path: Path) -> str:
    """The tokenizer that the metadata beside a .ds file name; empty if there is none."""
    metadata = _metadata(path) if path.suffix.lower() == ".ds" else None
    return metadata[0] if metadata and not metadata[0].startswith("Unknown") else ""


def sidecars(path: Path) -> list[Path]:
    """The files beside `path` that decide its documents."""
    if path.suffix.lower() != ".ds":
        return []
    return [each for each in (_beside(path, ".index"), _beside(path, ".metadata")) if each.exists()]


def unread(path: Path) -> Iterator[str]:
    """Messages about files beside `path` that are not read."""
    if path.suffix.lower() == ".ds" and _beside(path, ".loss").exists():
        yield f"{path.name}.loss is not read: every token is a target"
    if path.suffix.lower() == ".bin" and path.with_suffix(".idx").exists():
        yield f"{path.with_suffix('.idx').name} (Megatron's) is not read: documents end at the end-of-text id"


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _metadata(path: Path) -> tuple[str, int, int] | None:
    """The tokenizer, the bytes per id and the number of ids, as the .metadata file says; None without it."""
    file = _beside(path, ".metadata")
    try:
        first, count = file.read_text(encoding="utf-8").split("\n")[:2]
        name, _, width = first.rpartition("|")
        if int(width) not in (2, 4):
            raise ValueError(f"ids of {width} bytes")
        return name, int(width), int(count)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{file} is no metadata of datatrove ({' '.join(str(error).split())}): copy it again, or remove it"
        ) from None


def _datatrove(path: Path, dtype: str) -> tuple[Span, Ids | None]:
    """The ids of a .ds file, and where documents end if there is an index."""
    size, metadata, index = path.stat().st_size, _metadata(path), _beside(path, ".index")
    ends = None
    if index.exists():
        if index.stat().st_size % 8:
            raise ValueError(f"{index} has no whole number of uint64: copy the complete file again")
        ends = np.fromfile(index, "<u8")
        if len(ends) and (ends[1:] < ends[:-1]).any():
            raise ValueError(f"{index} is damaged: the ends of the documents do not ascend: copy it again")
    last = int(ends[-1]) if ends is not None and len(ends) else 0
    width = metadata[1] if metadata else size // last if last else np.dtype(dtype).itemsize
    if (last and size != last * width) or width not in (2, 4):
        raise ValueError(
            f"{path} has {size:,} bytes, but {index.name} ends at token {last:,}: copy both files again, complete"
        )
    span = _whole(path, "uint16" if width == 2 else "uint32")
    if metadata and metadata[2] != span.count:
        raise ValueError(
            f"{path} has {span.count:,} tokens of {width} bytes, but {path.name}.metadata says {metadata[2]:,}: "
            "copy both files again, complete"
        )
    return span, ends


# ── .parquet ──────────────────────────────────────────────────────────────────────────────────────


def _rows(path: Path, settings: Settings) -> Iterator[Iterable[Ids]]:
    """The rows of a column of lists of integers, divided at the end-of-text id."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet, types
    except ImportError as error:
        raise ValueError(
            f"{path} needs the package pyarrow ({error}): pip install -c constraints.txt -e '.[parquet]'"
        ) from None

    column = settings.column
    with path.open("rb") as opened:
        try:
            file = parquet.ParquetFile(opened, buffer_size=1 << 20, page_checksum_verification=True)
            kinds = {field.name: field.type for field in file.schema_arrow}
            there = (
                ", ".join(f"{name[:40]!r} {str(kind)[:40]}" for name, kind in list(kinds.items())[:12]) or "none"
            )
            fix = f"(there are: {there}): set tokenize.corpus.token_files.column"
            if column not in kinds:
                raise ValueError(f"{path} has no column {column!r} {fix}")
            kind = kinds[column]
            lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
            if not lists or not types.is_integer(kind.value_type):
                raise ValueError(f"{path}: the column {column!r} has {str(kind)[:80]}, no lists of integers {fix}")
            row = 0
            for batch in file.iter_batches(_ROWS, columns=[column], use_threads=False):
                for value in batch.column(0):
                    row += 1
                    if not value.is_valid or value.values.null_count:
                        raise ValueError(f"{path} row {row:,}: the column {column!r} has null, no ids: fix it")
                    ids = value.values.to_numpy(zero_copy_only=False)
                    ends = np.flatnonzero(ids == settings.end_of_text)
                    for start, end in zip([0, *(ends + 1)], [*ends, len(ids)], strict=True):
                        if start < end:
                            yield [ids[start:end]]
        except (arrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise _damaged(path, "parquet", error) from None
