"""The format of a file by its name, and its decompressed bytes."""

import gzip
import importlib
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

BLOCK = 1 << 20
COMPRESSED = (".gz", ".zst")
INCLUDED = (".txt", ".md", ".jsonl", ".parquet")
"""The endings that the default of `include` matches."""

PACKAGES: dict[str, tuple[str, ...]] = {
    ".csv": (), ".tsv": (), ".json": (),
    ".html": ("resiliparse",), ".htm": ("resiliparse",), ".xhtml": ("resiliparse",), ".epub": ("resiliparse",),
    ".docx": ("mammoth", "resiliparse"), ".pdf": ("pypdfium2",),
}  # fmt: skip
"""More endings that can be read, with the packages of the extra `documents` that they need."""

FORMS = (*INCLUDED, *PACKAGES)
DOCUMENTS = tuple(ending for ending, packages in PACKAGES.items() if packages)
"""Endings of the formats that are converted to text, each file to one document."""
_PACKED = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz")
ARCHIVES = (".parquet", ".pdf", ".docx", ".epub")
"""Endings of formats with internal compression."""

# A byte of zstd can decompress to tens of thousands: the input block size bounds the output size.
_ZSTD_BLOCK = 1 << 11
_ZSTD_WINDOW = 31
"""The largest window of zstd, as a power of two. Such a file needs up to 2 GiB of memory."""


@dataclass(frozen=True)
class Span:
    """The part of a file to read.

    Attributes:
        start, end: The range of bytes; None: to the end of the file.
        first_record: The number of records before it.
    """

    start: int = 0
    end: int | None = None
    first_record: int = 0

    def contains(self, offset: int) -> bool:
        """Whether a byte belongs to it."""
        return self.start <= offset and (self.end is None or offset < self.end)


WHOLE = Span()


def form(path: Path) -> str:
    """The suffix of the format, without one of compression: `.jsonl` for a.jsonl.gz."""
    inner = path.with_suffix("") if is_compressed(path) else path
    return inner.suffix.lower()


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED


def check(path: Path) -> None:
    """Checks for problems that would otherwise stop a long run later.

    Raises:
        ValueError: the package for this file is missing, or the file is incomplete.
    """
    kind = form(path)
    if kind in _PACKED:
        raise ValueError(f"{path} is an archive or a packed file, not a text: unpack it")
    if kind in ARCHIVES and is_compressed(path):
        raise ValueError(f"{path}: a {kind} file is compressed inside, not around: unpack it")
    for package in PACKAGES.get(kind, ()):
        needed(path, package, "documents")
    if kind == ".parquet":
        needed(path, "pyarrow.parquet", "parquet")
    elif is_compressed(path) and not path.stat().st_size:
        raise ValueError(f"{path} is damaged: it is empty, which no compressed file is: replace it")
    elif path.suffix.lower() == ".zst":
        _zstd(path)


def blocks(path: Path, span: Span = WHOLE) -> Iterator[bytes]:
    """Yields the bytes of a file, or a part of it, in blocks; decompressed if the name ends in .gz or .zst.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is truncated, damaged or not in this format.
    """
    suffix = path.suffix.lower()
    if suffix == ".zst":
        yield from _zstd_blocks(path, _zstd(path))
    elif suffix == ".gz":
        try:
            with gzip.open(path) as packed:
                yield from _read(packed, BLOCK)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise damaged(path, "gzip", error) from None
    else:
        with path.open("rb") as file:
            file.seek(span.start)
            left = sys.maxsize if span.end is None else span.end - span.start
            while block := file.read(min(BLOCK, left)):
                left -= len(block)
                yield block


def needed(path: Path, module: str, extra: str) -> ModuleType:
    """Imports a package that only some files need.

    Raises:
        ValueError: it is not installed; the message names the file and the installation command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(
            f"{path} needs the package {package} ({error}): pip install -c constraints.txt -e '.[{extra}]'"
        ) from None


def damaged(path: Path, kind: str, error: object) -> ValueError:
    return ValueError(f"{path} is truncated, damaged or no {kind} file ({error}): replace it")


def _read(file: Any, size: int) -> Iterator[bytes]:
    return iter(partial(file.read, size), b"")


def _zstd(path: Path) -> ModuleType:
    try:
        return importlib.import_module("compression.zstd")  # from Python 3.14 on
    except ImportError:
        return needed(path, "zstandard", "zstd")


def _zstd_blocks(path: Path, zstd: Any) -> Iterator[bytes]:
    try:
        if zstd.__name__ == "zstandard":
            yield from _frames(path, zstd.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW))
        else:
            with zstd.open(path, options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW}) as file:
                yield from _read(file, BLOCK)
    except (EOFError, zstd.ZstdError) as error:
        if "too much memory" in str(error):
            raise ValueError(
                f"{path} needs a window over 2 GiB: compress it with `zstd --long=31` or less"
            ) from None
        raise damaged(path, "zstd", error) from None


def _frames(path: Path, zstd: Any) -> Iterator[bytes]:
    """Reads all frames of a file. (The reader of zstandard accepts truncated frames.)"""
    with path.open("rb") as file:
        frame = None
        for data in _read(file, _ZSTD_BLOCK):
            while data:
                frame = frame or zstd.decompressobj()
                if text := frame.decompress(data):
                    yield text
                data = frame.unused_data
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends within a frame")
