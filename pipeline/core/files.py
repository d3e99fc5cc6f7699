"""Atomic writes, checksums and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, PipelineError
from pipeline.core.values import read_values

MANIFEST = "manifest.json"
_FIX_ELSEWHERE = "run `pipeline tokenize` again, which makes only what is missing"
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


def sha256(path: Path, read: Callable[[int], object] = lambda size: None) -> str:
    """The sha256 of a file, in hexadecimal; `read` is told the bytes that were read, for a progress line."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            read(len(block))
    return digest.hexdigest()


@dataclass(frozen=True)
class FileEntry:
    """A file's size and sha256.

    Attributes:
        path: Where it is if not in the folder of the manifest: absolute, or relative to the project.
    """

    bytes: int
    sha256: str
    path: str = ""

    def located(self, folder: Path, name: str) -> Path:
        """The file `name` of a folder two levels below the project, such as artifacts/tokens."""
        if not self.path:
            return folder / name
        # DVC runs some experiments in a copy of the project.
        return Path(os.environ.get("DVC_ROOT") or folder.resolve().parents[1]) / self.path


@dataclass(frozen=True)
class _Manifest:
    """The content of manifest.json: an entry per file."""

    files: dict[str, FileEntry]


def write_manifest(
    folder: Path,
    known: Mapping[str, FileEntry] | None = None,
    read: Callable[[int], object] = lambda size: None,
) -> None:
    """Writes manifest.json with the size and sha256 of every file in `folder`.

    Args:
        folder: The folder.
        known: The entries of some files, also of those that are elsewhere (`FileEntry.path`).
        read: Is told the bytes of each part that is read.
    """
    given = known or {}
    entries = {name: entry for name, entry in given.items() if entry.path}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            entries[name] = given.get(name) or FileEntry(path.stat().st_size, sha256(path, read))
    values = {
        name: {key: value for key, value in asdict(entry).items() if value != ""}
        for name, entry in sorted(entries.items())
    }
    write_json(folder / MANIFEST, {"files": values})


def manifest_entries(folder: Path, fix: str) -> dict[str, FileEntry]:
    """The entries of a folder's manifest.

    Raises:
        DataError: it is missing or corrupt; `fix` ends the message.
    """
    return read_values(folder / MANIFEST, _Manifest, fix).files


def located_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by name, and those that its manifest lists in another folder; none if it is missing."""
    files = {path.name: path for path in folder.glob("*")}
    with suppress(DataError):  # a damaged manifest is an error of the check
        entries = manifest_entries(folder, "").items()
        files |= {name: entry.located(folder, name) for name, entry in entries if entry.path}
    return files


def verify_manifest(
    folder: Path,
    fix: str,
    unread: Container[str] = (),
    read: Callable[[int], object] = lambda size: None,
) -> frozenset[str]:
    """Checks all files of `folder` against its manifest; of the files `unread` only the size. `read` is told the
    bytes of each part that is read.

    Returns:
        The names of all files.

    Raises:
        DataError: a file is missing or corrupt; `fix` ends the message.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: {fix}")
    entries = manifest_entries(folder, fix)
    if not entries:
        raise DataError(f"{folder / MANIFEST} is damaged (it lists no files): {fix}")
    for name, entry in entries.items():
        path, remedy = entry.located(folder, name), _FIX_ELSEWHERE if entry.path else fix
        if not path.is_file():
            raise DataError(f"{path} is missing: {remedy}")
        if path.stat().st_size != entry.bytes:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes instead of {entry.bytes:,}: {remedy}")
        if name not in unread and sha256(path, read) != entry.sha256:
            raise DataError(f"{path} is damaged (wrong sha256): {remedy}")
    return frozenset(entries)


def recorded_sha256(path: Path) -> str:
    """A file's sha256 according to the manifest beside it, which `verify_manifest` checks."""
    entry = manifest_entries(path.parent, "make the folder again").get(path.name)
    if entry is None:
        raise DataError(f"{path.parent / MANIFEST} does not list {path.name}: make the folder again")
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
