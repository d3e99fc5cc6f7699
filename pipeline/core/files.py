"""Files that are complete or absent: atomic writes, outputs published together, checksums and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import DataError, PipelineError
from pipeline.core.paths import METRICS
from pipeline.core.values import read_values

if TYPE_CHECKING:
    from pipeline.core.paths import Paths

MANIFEST = "manifest.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEFTOVER = re.compile(r"\.(?:partial|old)-(\d+)$")
_SECONDS_TO_PUBLISH = 10.0


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `content` so that a reader, or a crash at any moment, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    partial = _beside(path, "partial")
    with room_for(len(content), path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def room_for(size: int, path: Path) -> Iterator[None]:
    """If the disk is full inside the block, says how much space is missing for `size` bytes at `path`.

    The block must remove partial files before it ends: their space counts as free.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(path.parent).free
        raise PipelineError(
            f"{path}: the disk is full: {readable(size)} are to be written and {readable(free)} are free, so at "
            f"least {readable(max(size - free, 1))} are missing: make room and run it again"
        ) from None


def readable(size: float) -> str:
    """A number of bytes with its unit: "1.5 GB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:.0f} bytes"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with two spaces of indentation; NaN and infinity are refused (they are not JSON)."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, mend: str) -> Any:
    """Reads JSON that an earlier stage wrote; `mend` says what to run when it is missing or damaged."""
    return read_values(path, object, mend)


@contextmanager
def published_folder(path: Path, paths: Paths) -> Iterator[Path]:
    """Yields an empty folder that replaces `path` when the block ends without an error, together with its metrics.

    Each file of its metrics/ also replaces the file of that name in the project's metrics/. Everything is staged
    beside what it replaces, then a journal names it, then it is renamed: an error leaves the old outputs, and what
    a killed process leaves is completed by `recover`.

    Raises:
        PipelineError: a file is in the way.
        OSError: something cannot be written; nothing was replaced.
    """
    recover(paths)
    if os.path.lexists(path) and not path.is_dir():
        raise PipelineError(f"{path} is no folder, and a folder is to be written there: move it away")
    targets = [path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = _beside(path, "partial")
        staged.mkdir()
        yield staged
        for copy in sorted((staged / METRICS).glob("*")):
            target = paths.metrics / copy.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            targets.append(target)
            shutil.copyfile(copy, _beside(target, "partial"))
        _sync(*staged.rglob("*"), *(_beside(target, "partial") for target in targets), *_parents(targets))
        _replace(targets, paths)
    finally:
        if not _journal(paths).exists():  # it stays only where what it names must still be completed
            for target in targets:
                _remove(_beside(target, "partial"))
                _remove(_beside(target, "old"))


def recover(paths: Paths) -> bool:
    """Completes a publication that a killed process left half done, and removes dead processes' staged files.

    Returns:
        Whether there was such a publication.

    Raises:
        OSError: it cannot be completed.
        PipelineError: its journal is damaged, or another process publishes for too long.
    """
    if not _journal(paths).exists() and not any(_leftovers(paths)):
        return False
    try:
        with _publishing(paths):
            completed = _complete(paths)
            for leftover in [*_leftovers(paths)]:
                _remove(leftover)
        return completed
    except OSError:
        if _journal(paths).exists():
            raise
        return False  # such as leftovers in a folder that this user only reads


def _replace(targets: list[Path], paths: Paths) -> None:
    """Replaces all targets by what is staged beside them, or none."""
    journal, pid = _journal(paths), os.getpid()
    with _publishing(paths):
        _complete(paths)
        try:
            write_json(journal, {"pid": pid, "targets": [paths.shown(target) for target in targets]})
            _sync(journal.parent)
            for target in targets:
                _forward(target, pid)
            _sync(*_parents(targets))
            journal.unlink()
        except BaseException:
            for target in reversed(targets):
                _back(target, pid)
            journal.unlink(missing_ok=True)
            raise


def _complete(paths: Paths) -> bool:
    """Replaces what the journal names, where there is one; whoever holds the lock may do so."""
    journal = _journal(paths)
    if not journal.exists():
        return False
    mend = (
        f"remove it, and run the stages again whose outputs changed last (`ls -lt {paths.shown(journal.parent)}`)"
    )
    try:
        value = read_json(journal, mend)
        pid, targets = int(value["pid"]), [Path(name) for name in value["targets"]]
        if any(target.is_absolute() or ".." in target.parts or not target.name for target in targets):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{journal} is damaged: {mend}") from None
    targets = [paths.root / target for target in targets]
    for target in targets:
        _forward(target, pid)
    _sync(*_parents(targets))
    journal.unlink()
    return True


def _forward(target: Path, pid: int) -> None:
    """Puts what is staged in the target's place; may be repeated after a kill at any moment."""
    staged, old = _beside(target, "partial", pid), _beside(target, "old", pid)
    if not os.path.lexists(staged):
        return
    if os.path.lexists(target):
        _remove(old)
        os.rename(target, old)
    os.rename(staged, target)


def _back(target: Path, pid: int) -> None:
    """Undoes `_forward`, of which any part was done."""
    staged, old = _beside(target, "partial", pid), _beside(target, "old", pid)
    if not os.path.lexists(staged) and os.path.lexists(target):
        os.rename(target, staged)
    if os.path.lexists(old) and not os.path.lexists(target):
        os.rename(old, target)


def _journal(paths: Paths) -> Path:
    return paths.root / "artifacts" / ".publishing.json"


@contextmanager
def _publishing(paths: Paths) -> Iterator[None]:
    """Waits for other processes that replace outputs, which takes them milliseconds."""
    end = time.monotonic() + _SECONDS_TO_PUBLISH
    while True:
        with ExitStack() as held:
            try:
                held.enter_context(lock(_journal(paths).with_suffix(".lock"), "publishing in this folder"))
            except PipelineError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
                continue
            yield
            return


def _beside(target: Path, kind: str, pid: int | None = None) -> Path:
    """The hidden name beside a target for its new content ("partial") or its former one ("old")."""
    return target.with_name(f".{target.name}.{kind}-{os.getpid() if pid is None else pid}")


def _leftovers(paths: Paths) -> Iterator[Path]:
    """What processes that ended left beside the project's outputs and other files that commands write."""
    for folder in (paths.root, paths.tokens.parent, paths.metrics, paths.reference.parent):
        for path in folder.glob(".*-*"):
            owner = _LEFTOVER.search(path.name)
            if owner and not _is_another(int(owner[1])):
                yield path


def _remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it is there and can be removed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _parents(targets: list[Path]) -> set[Path]:
    return {target.parent for target in targets}


def _sync(*paths: Path) -> None:
    """Has the disk hold files, and the names in folders, before anything that follows."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that do not sync folders
                raise
        finally:
            os.close(descriptor)


def _is_another(pid: int) -> bool:
    """Whether `pid` is another process that is alive (in a container, a later run may get the same pid)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def sha256(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Entry:
    """A file's size and sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """What manifest.json holds: an entry for each file."""

    files: dict[str, _Entry]


def write_manifest(folder: Path) -> None:
    """Writes manifest.json: the size and sha256 of every file in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
    write_json(folder / MANIFEST, {"files": entries})


def verify_manifest(folder: Path, mend: str) -> None:
    """Checks every file in `folder` against its manifest.

    Raises:
        DataError: a file is missing or differs from what was written.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: {mend}")
    entries = read_values(folder / MANIFEST, _Manifest, mend).files
    if not entries:
        raise DataError(f"{folder / MANIFEST} is damaged (it lists no files): {mend}")
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing: {mend}")
        if path.stat().st_size != entry.bytes:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes where {entry.bytes:,} were written: {mend}")
        if sha256(path) != entry.sha256:
            raise DataError(f"{path} is damaged (its sha256 is not the one that was written): {mend}")


def recorded_sha256(path: Path) -> str:
    """A file's sha256 from the manifest beside it (`verify_manifest` checks that it is the file's)."""
    manifest = path.parent / MANIFEST
    entry = read_values(manifest, _Manifest, "make the folder again").files.get(path.name)
    if entry is None:
        raise DataError(f"{manifest} does not list {path.name}: make the folder again")
    return entry.sha256


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Holds an exclusive lock, which the operating system releases when the process ends.

    Raises:
        PipelineError: another process holds it; the message names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise BlockingIOError  # its holder removed the file after it was opened here
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
