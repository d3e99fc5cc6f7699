"""A record of the large folders that match their manifests, so that they are hashed once: .resume/verified.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.core.console import Progress
from pipeline.core.errors import DataError
from pipeline.core.files import MANIFEST, located_files, read_json, sha256, write_json
from pipeline.core.paths import Paths

SMALLEST = 64 << 20
"""The size in bytes from which a folder is recorded; a smaller one is hashed in a moment."""
_MOST = 1000
"""The number of folders in the record."""


def verified_files(folder: Path) -> frozenset[str]:
    """The names of the files in `folder` if they are the ones of the last check, by their inodes, sizes and times.

    A file that was changed in place or replaced has another time or inode. The record holds a hash of the manifest
    with those of its files.
    """
    with suppress(OSError):
        if _size(folder) >= SMALLEST:
            manifest, files = _state(folder)
            if _read().get(manifest) == files:
                return frozenset(located_files(folder))
    return frozenset()


State = tuple[str, str]
"""The hash of a folder's manifest, and one of the inodes, sizes and times of its files."""


def folder_state(folder: Path) -> State | None:
    """The present state of a folder, for `record_verified`; None if it is not recorded or not readable."""
    with suppress(OSError):
        if _size(folder) >= SMALLEST:
            return _state(folder)
    return None


def record_verified(folder: Path, state: State | None) -> None:
    """Records that the files in `folder` match its manifest, unless they changed after `state`, which was taken
    before they were read.

    Processes may do so at the same time: the record is replaced as a whole, and a lost entry costs a check.
    """
    with suppress(OSError):
        if state is not None and _state(folder) == state:
            manifest, files = state
            record = {key: value for key, value in _read().items() if key != manifest} | {manifest: files}
            write_json(_path(), dict(list(record.items())[-_MOST:]))


@contextmanager
def hashing(size: int) -> Iterator[Callable[[int], object]]:
    """Shows the progress of hashing `size` bytes, if they are many; yields what is told the bytes of each part."""
    if size < SMALLEST:
        yield lambda read: None
        return
    with Progress("hashing", "byte", size) as progress:
        yield progress.update


def _path() -> Path:
    return Paths(Path.cwd()).resume / "verified.json"


def _read() -> dict[str, str]:
    try:
        record = read_json(_path(), "")
    except DataError:  # missing or damaged
        return {}
    return record if isinstance(record, dict) else {}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in located_files(folder).values())


def _state(folder: Path) -> State:
    files = []
    for name, path in sorted(located_files(folder).items()):
        stat = path.stat()
        files.append((name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return sha256(folder / MANIFEST), hashlib.sha256(json.dumps(files).encode()).hexdigest()
