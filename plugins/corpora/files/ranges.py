"""Divides large files into ranges of bytes that can be read independently."""

import codecs
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.plugin import word_end

Find = Callable[[BinaryIO, int, int], int | None]
"""Finds the first cut of (file, start, end)."""

_WINDOW = 1 << 16
_CONTINUATION = bytes(range(0x80, 0xC0))
"""The bytes of UTF-8 within a character."""


def cuts(path: Path, size: int, find: Find) -> Iterator[int]:
    """The offsets at which a file is cut into ranges of about `size` bytes.

    They depend on the file only near the multiples of `size`, where `find` looks. The last range has up to twice
    the size.
    """
    total, last = path.stat().st_size, 0
    with path.open("rb") as file:
        for start in range(size, total - size + 1, size):
            cut = find(file, start, start + size) if start > last else None
            if cut is not None and cut < total:
                last = cut
                yield cut


def after(mark: bytes) -> Find:
    """Finds the end of the first `mark` that lies behind the start."""

    def find(file: BinaryIO, start: int, end: int) -> int | None:
        file.seek(start)
        pending = b""
        while start < end and (block := file.read(_WINDOW)):
            data = pending + block
            if (place := data.find(mark)) >= 0:
                return start - len(pending) + place + len(mark)
            pending = data[max(0, len(data) - len(mark) + 1) :]
            start += len(block)
        return None

    return find


def after_word(encoding: str) -> Find:
    """Finds the end of a word (see `word_end`) in a text whose encoding `is_divisible`."""

    def find(file: BinaryIO, start: int, end: int) -> int | None:
        file.seek(start)
        data = file.read(min(_WINDOW, end - start))
        whole = data.lstrip(_CONTINUATION) if codecs.lookup(encoding).name == "utf-8" else data
        text = whole.decode(encoding, "surrogateescape")
        if (cut := word_end(text)) is None:
            return None
        return start + len(data) - len(whole) + len(text[:cut].encode(encoding, "surrogateescape"))

    return find


def is_divisible(encoding: str) -> bool:
    """Whether a text in this encoding can be decoded from any character on, with byte 10 as the only line feed.

    That is UTF-8, and the encodings that are a table of 256 characters.
    """
    name = codecs.lookup(encoding).name
    if name == "utf-8":
        return True
    try:
        table = importlib.import_module(f"encodings.{name.replace('-', '_')}").decoding_table
    except (ImportError, AttributeError):
        return False
    return bool(table.count("\n") == 1 and table[10] == "\n")


def overlaps_itself(separator: str) -> bool:
    """Whether an occurrence of the separator can begin within another, as those of a blank line do."""
    return any(separator.startswith(separator[-length:]) for length in range(1, len(separator)))
