"""Finds the token files below data/raw."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

SIDECARS = (".index", ".metadata", ".loss")
"""Endings of the files beside a .ds file."""


def find(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that match one of the patterns, sorted by name; hidden ones are left out. Links are followed; a
    file with several names is read once.

    Raises:
        OSError: `root` is missing, or no file matches; the message has `root`.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is missing, or no folder: make it and put the token files into it")
    found: dict[tuple[int, int], Path] = {}
    for path in sorted({path for pattern in patterns for path in _files(root, pattern)}):
        status = path.stat()
        found.setdefault((status.st_dev, status.st_ino), path)
    if not found:
        raise FileNotFoundError(f"{root} has no file that matches {', '.join(patterns)}")
    return list(found.values())


def left_out(root: Path, read: Sequence[Path]) -> int:
    """The number of files below `root` that are not read."""
    return len({path for path in _files(root, "**") if path.suffix not in SIDECARS} - set(read))


def _files(root: Path, pattern: str) -> Iterator[Path]:
    matches = (root / name for name in glob.iglob(pattern, root_dir=root, recursive=True))
    for path in matches:
        if path.is_file():
            yield path
        elif path.is_dir() and not pattern.endswith("**"):  # a folder, named without a pattern for its files
            yield from _files(root, os.path.join(glob.escape(os.path.relpath(path, root)), "**"))
