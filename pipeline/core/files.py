"""Atomic writes, checksums and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, PipelineError
from pipeline.core.values import read_values

MANIFEST = "manifest.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file atomically: after a crash at any moment, there is the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    partial = beside(path, "partial")
    with report_full_disk(len(content), path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def beside(target: Path, kind: str, pid: int | None = None) -> Path:
    """The hidden path beside a target for its new content (`kind` "partial") or its old one ("old")."""
    return target.with_name(f".{target.name}.{kind}-{os.getpid() if pid is None else pid}")


@contextmanager
def report_full_disk(size: int, path: Path) -> Iterator[None]:
    """Converts "disk full" errors of the block into a PipelineError that says how much space `size` bytes at `path`
    need.

    The block must remove its partial files, since their space counts as free.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(path.parent).free
        raise PipelineError(
            f"{path}: the disk is full: {format_bytes(size)} to write, {format_bytes(free)} free: make room for at "
            f"least {format_bytes(max(size - free, 1))} and run it again"
        ) from None


def format_bytes(size: float) -> str:
    """Formats a number of bytes: "1.5 GB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:.0f} bytes"


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON; raises ValueError for NaN and infinity, which JSON lacks."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, fix: str) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: it is missing or corrupt; `fix` ends the message.
    """
    return read_values(path, object, fix)


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Entry:
    """A file's size and sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """The content of manifest.json: an entry per file."""

    files: dict[str, _Entry]


def write_manifest(folder: Path) -> None:
    """Writes manifest.json with the size and sha256 of every file in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
    write_json(folder / MANIFEST, {"files": entries})


def verify_manifest(folder: Path, fix: str, unread: Container[str] = ()) -> frozenset[str]:
    """Checks all files of `folder` against its manifest; of the files `unread` only the size.

    Returns:
        The names of all files.

    Raises:
        DataError: a file is missing or corrupt; `fix` ends the message.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: {fix}")
    entries = read_values(folder / MANIFEST, _Manifest, fix).files
    if not entries:
        raise DataError(f"{folder / MANIFEST} is damaged (it lists no files): {fix}")
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing: {fix}")
        if path.stat().st_size != entry.bytes:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes instead of {entry.bytes:,}: {fix}")
        if name not in unread and sha256(path) != entry.sha256:
            raise DataError(f"{path} is damaged (wrong sha256): {fix}")
    return frozenset(entries)


def recorded_sha256(path: Path) -> str:
    """A file's sha256 according to the manifest beside it, which `verify_manifest` checks."""
    manifest = path.parent / MANIFEST
    entry = read_values(manifest, _Manifest, "make the folder again").files.get(path.name)
    if entry is None:
        raise DataError(f"{manifest} does not list {path.name}: make the folder again")
    return entry.sha256


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Holds an exclusive lock on a file. The operating system releases it when the process ends.

    Raises:
        PipelineError: another process holds it; `what` and that process's id are in the message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise BlockingIOError  # the holder removed the file after this open
        except (BlockingIOError, FileNotFoundError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise PipelineError(
                f"{what} is already running as process {holder}: wait for it, or end it with `kill {holder}`"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
