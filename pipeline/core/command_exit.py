"""The end of a command: one-line errors, exit codes, and signals."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType

from pipeline.core.errors import Interrupted

_LONGEST_MESSAGE = 4000
"""The maximum number of characters of an error."""
_COMPILERS = {"g++", "c++", "clang++", "clang", "cc1plus", "as", "collect2", "ld"}
"""Names of processes that compile generated C++, beside torch's compile workers."""


def show_traceback(error: BaseException) -> None:
    """Prints the traceback of an error if PIPELINE_TRACEBACK is set, for authors of plugins."""
    if os.environ.get("PIPELINE_TRACEBACK"):
        traceback.print_exception(error)


def stop_on_sigterm() -> None:
    """Makes SIGTERM raise Interrupted, as Ctrl-C raises KeyboardInterrupt."""
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one kills at once
        if os.getpid() != process:  # a forked child
            os.kill(os.getpid(), number)
        raise Interrupted(number, "stopped by SIGTERM")

    signal.signal(signal.SIGTERM, stop)


def stopped(message: str, number: int) -> int:
    """Prints that the command stopped, and kills compiler processes, which would continue; returns the exit code.

    Other child processes continue: those of trackers still write."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has exited
            if child.name() in _COMPILERS or any("torch/_inductor" in part for part in child.cmdline()):
                child.kill()
    return fail(message, 128 + number, "")


def fail(message: str, code: int, kind: str = "error: ") -> int:
    """Prints an error as one line on stderr; returns the exit code."""
    from pipeline.core.console import printable, wrapped

    line = " ".join(message.split())
    if len(line) > _LONGEST_MESSAGE:  # for example, with a value of a megabyte
        line = f"{line[: _LONGEST_MESSAGE // 2]} … {line[-_LONGEST_MESSAGE // 2 :]}"
    with suppress(BrokenPipeError):  # the exit code still reports it
        print(wrapped(f"{kind}{printable(line)}", sys.stderr), file=sys.stderr, flush=True)
    return code
