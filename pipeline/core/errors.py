"""The errors that a person can cause: each is one line that says what, where, and how to fix it."""

from __future__ import annotations

import errno
import re

_LONGEST = 500
"""Characters of somebody else's exception that a message repeats."""


class PipelineError(Exception):
    """Any error that the command line prints as one line, with exit code 1."""


class ParamsError(PipelineError):
    """params.yaml, `--params` or `--set` holds something that cannot be used."""


class PluginError(PipelineError):
    """A plugin cannot be loaded, breaks its contract, or does not exist; the message names the plugin's file."""


class DataError(PipelineError):
    """A text, token file or split is missing, damaged or does not fit."""


class CheckpointError(PipelineError):
    """A checkpoint or an export is missing, damaged or does not fit."""


def describe_exception(error: BaseException) -> str:
    """An exception's type and text as one line of bounded length."""
    try:
        text = str(error)
    except BaseException:  # an exception of somebody else's code: so is its text
        text = "(its text cannot be shown)"
    words = " ".join(f"{type(error).__name__}: {text[:2000]}".split()).removesuffix(":")
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"


class StopRequested(BaseException):
    """The run stops here, between two micro-batches or evaluation batches; what is half done is done again later.

    No Exception, so that no plugin catches it by accident.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived (a training run has been saved); the process exits with 128 + the signal's number.

    No Exception, so that no plugin catches it by accident.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|size calculation overflowed")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of a GPU ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))
    )


_FILE_IN_THE_WAY = "a file lies where a folder is needed: move it away"
_FIX = {
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EROFS: "it lies on a read-only disk: work in another folder",
    errno.ENOSPC: "make room on the disk and run it again",
    errno.EDQUOT: "make room on the disk and run it again",
    errno.EFBIG: "raise the limit on file sizes (`ulimit -f`) and run it again",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`) and run it again",
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EISDIR: "a folder lies where a file is needed: move it away",
}


def explain_os_error(error: OSError) -> str:
    """What the operating system refused, on which file, and how to fix it."""
    parts = [error.filename2 or error.filename, error.strerror or str(error), _FIX.get(error.errno or 0)]
    return ": ".join(str(part) for part in parts if part)
