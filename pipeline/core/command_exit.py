"""How a command ends: its error in one line, and its exit code; and how a signal ends it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType

from pipeline.core.errors import Interrupted

_LONGEST_MESSAGE = 4000
"""Characters of an error."""
_COMPILERS = {"g++", "c++", "clang++", "clang", "cc1plus", "as", "collect2", "ld"}
"""Names of the processes that compile generated C++, beside torch's own compile workers."""


def show_traceback(error: BaseException) -> None:
    """Prints where an error came from, for whoever writes a plugin and asks for it by PIPELINE_TRACEBACK=1."""
    if os.environ.get("PIPELINE_TRACEBACK"):
        traceback.print_exception(error)


def stop_on_sigterm() -> None:
    """Has SIGTERM unwind the command, as Ctrl-C does."""
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        if os.getpid() != process:  # a forked child
            os.kill(os.getpid(), number)
        raise Interrupted(number, "stopped by SIGTERM")

    signal.signal(signal.SIGTERM, stop)


def stopped(message: str, number: int) -> int:
    """Says that the command stopped as it was asked to, and ends the compiler's processes, which would go on.

    Other children are left alone: trackers' ones are still writing."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended by itself
            if child.name() in _COMPILERS or any("torch/_inductor" in part for part in child.cmdline()):
                child.kill()
    return fail(message, 128 + number, "")


def fail(message: str, code: int, kind: str = "error: ") -> int:
    """Prints an error in one line on stderr; returns the exit code."""
    from pipeline.core.console import printable, wrapped

    line = " ".join(message.split())
    if len(line) > _LONGEST_MESSAGE:  # a value of a megabyte, say
        line = f"{line[: _LONGEST_MESSAGE // 2]} … {line[-_LONGEST_MESSAGE // 2 :]}"
    with suppress(BrokenPipeError):  # the exit code still says it
        print(wrapped(f"{kind}{printable(line)}", sys.stderr), file=sys.stderr, flush=True)
    return code
