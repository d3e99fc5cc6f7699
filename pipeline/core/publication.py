"""Atomic publishing: all outputs of a stage are replaced together, even if the process is killed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.console import say
from pipeline.core.errors import DataError, PipelineError
from pipeline.core.files import beside, lock, read_json, write_json
from pipeline.core.paths import METRICS

if TYPE_CHECKING:
    from pipeline.core.paths import Paths

_LEFTOVER = re.compile(r"\.(?:partial|old)-(\d+)$")
_SECONDS_TO_PUBLISH = 10.0


@contextmanager
def published_folder(path: Path, paths: Paths) -> Iterator[Path]:
    """Yields an empty folder that replaces `path`, with its metrics, when the block ends without an error.

    Each file of its metrics/ also replaces the file of the same name in the project's metrics/. All new content is
    written beside the old, recorded in a journal, then renamed. After an error, the old outputs remain; after a
    kill, `recover` completes the renames.

    Raises:
        PipelineError: `path` is a file.
        OSError: a file cannot be written; nothing is replaced.
    """
    recover(paths)
    if os.path.lexists(path) and not path.is_dir():
        raise PipelineError(f"{path} is a file in the place of an output folder: move it away")
    targets = [path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = beside(path, "partial")
        staged.mkdir()
        yield staged
        for copy in sorted((staged / METRICS).glob("*")):
            target = paths.metrics / copy.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            targets.append(target)
            shutil.copyfile(copy, beside(target, "partial"))
        sync(*staged.rglob("*"), *(beside(target, "partial") for target in targets), *_parents(targets))
        _replace(targets, paths)
    finally:
        if not _journal(paths).exists():  # a journal means that renames must be completed
            for target in targets:
                _remove(beside(target, "partial"))
                old = beside(target, "old")
                _remove(old)
                if os.path.lexists(old):
                    say(f"note: {paths.shown(old)} cannot be removed; the next command tries again")


def recover(paths: Paths) -> bool:
    """Completes a publication that a killed process left unfinished, and removes the temporary files of dead
    processes.

    Returns:
        Whether there was an unfinished publication.

    Raises:
        OSError: it cannot be completed.
        PipelineError: the journal is corrupt, or another process publishes for too long.
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
        return False  # for example, leftovers in a read-only folder


def _replace(targets: list[Path], paths: Paths) -> None:
    """Replaces all targets with their staged content, or none."""
    journal, pid = _journal(paths), os.getpid()
    with _publishing(paths):
        _complete(paths)
        try:
            write_json(journal, {"pid": pid, "targets": [paths.shown(target) for target in targets]})
            sync(journal.parent)
            for target in targets:
                _forward(target, pid)
            sync(*_parents(targets))
            journal.unlink()
        except BaseException:
            for target in reversed(targets):
                _back(target, pid)
            journal.unlink(missing_ok=True)
            raise


def _complete(paths: Paths) -> bool:
    """Completes the renames in the journal, if there is one. The caller must hold the lock."""
    journal = _journal(paths)
    if not journal.exists():
        return False
    fix = f"remove it, and run the stages whose outputs changed last again (`ls -lt {paths.shown(journal.parent)}`)"
    try:
        value = read_json(journal, fix)
        pid, targets = int(value["pid"]), [Path(name) for name in value["targets"]]
        if any(target.is_absolute() or ".." in target.parts or not target.name for target in targets):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{journal} is damaged: {fix}") from None
    targets = [paths.root / target for target in targets]
    for target in targets:
        _forward(target, pid)
    sync(*_parents(targets))
    journal.unlink()
    return True


def _forward(target: Path, pid: int) -> None:
    """Replaces a target with its staged content. It can be repeated after a kill at any moment."""
    staged, old = beside(target, "partial", pid), beside(target, "old", pid)
    if not os.path.lexists(staged):
        return
    if os.path.lexists(target):
        _remove(old)
        os.rename(target, old)
    os.rename(staged, target)


def _back(target: Path, pid: int) -> None:
    """Undoes `_forward`, even if it was done in part."""
    staged, old = beside(target, "partial", pid), beside(target, "old", pid)
    if not os.path.lexists(staged) and os.path.lexists(target):
        os.rename(target, staged)
    if os.path.lexists(old) and not os.path.lexists(target):
        os.rename(old, target)


def _journal(paths: Paths) -> Path:
    return paths.tokens.parent / ".publishing.json"


@contextmanager
def _publishing(paths: Paths) -> Iterator[None]:
    """Holds the publishing lock; waits for other processes, which hold it for milliseconds."""
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


def _leftovers(paths: Paths) -> Iterator[Path]:
    """Temporary files of dead processes beside the project's outputs and other files that commands write."""
    for folder in (paths.root, paths.tokens.parent, paths.metrics, paths.reference.parent, paths.weights):
        for path in folder.glob(".*-*"):
            owner = _LEFTOVER.search(path.name)
            if owner and not _is_another(int(owner[1])):
                yield path


def _remove(path: Path) -> None:
    """Removes a file, link or folder if possible; ignores errors."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _parents(targets: list[Path]) -> set[Path]:
    return {target.parent for target in targets}


def sync(*paths: Path) -> None:
    """Syncs files, and the entries of folders, to disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without fsync for folders
                raise
        finally:
            os.close(descriptor)


def _is_another(pid: int) -> bool:
    """Whether `pid` is another live process. In a container, a later run may have the same pid."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
