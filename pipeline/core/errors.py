"""Errors that users can cause. Each message is one line: what is wrong, where, and how to fix it."""

from __future__ import annotations

import errno
import re
from pathlib import Path

_LONGEST = 500
"""The maximum number of characters of another library's exception in a message."""


class PipelineError(Exception):
    """An error that the command line prints as one line, with exit code 1."""


class ParamsError(PipelineError):
    """A value in params.yaml, `--params` or `--set` is invalid."""


class PluginError(PipelineError):
    """A plugin is missing, cannot be loaded, or breaks its contract; the message names the plugin's file."""


class DataError(PipelineError):
    """A text, token file or split is missing, corrupt, or does not fit."""


class CheckpointError(PipelineError):
    """A checkpoint or an export is missing, corrupt, or does not fit."""


def describe_exception(error: BaseException) -> str:
    """The type and message of an exception as one line of bounded length; for a missing package with the remedy."""
    try:
        text = str(error)
    except BaseException:  # foreign code, which may fail in __str__
        text = "(no message: its __str__ failed)"
    words = " ".join(f"{type(error).__name__}: {text[:2000]}".split()).removesuffix(":")
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        words += ": install the package that has it"
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"


class StopRequested(BaseException):
    """Stops a run between two micro-batches or evaluation batches; a resumed run repeats the unfinished step.

    Not an Exception, so that plugins do not catch it by accident.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupted(BaseException):
    """Ends the process after SIGINT or SIGTERM, with exit code 128 + the signal's number. A training run is saved.

    Not an Exception, so that plugins do not catch it by accident.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|size calculation overflowed")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the machine or a GPU ran out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))
    )


_FILE_IN_THE_WAY = "a file is in the place of a folder: move it away"
_FIX = {
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EROFS: "the disk is read-only: work in another folder",
    errno.ENOSPC: "make room on the disk and run it again",
    errno.EDQUOT: "make room on the disk and run it again",
    errno.EFBIG: "raise the limit on file sizes (`ulimit -f`) and run it again",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`) and run it again",
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EISDIR: "a folder is in the place of a file: move it away",
}


def check_not_endless(path: Path) -> None:
    """Raises OSError for a FIFO or a device in the place of a file: reading it may never end."""
    if path.is_fifo() or path.is_char_device():
        raise OSError(errno.EINVAL, "not a regular file, but a FIFO or a device: move it away", str(path))


def explain_os_error(error: OSError) -> str:
    """The message of an OSError: the file, the reason, and how to fix it."""
    parts = [error.filename2 or error.filename, error.strerror or str(error), _FIX.get(error.errno or 0)]
    return ": ".join(str(part) for part in parts if part)
