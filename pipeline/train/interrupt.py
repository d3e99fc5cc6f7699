"""When a run has to stop before its end: a signal came, or the process that it works for is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

import psutil

from pipeline.core.console import say
from pipeline.core.errors import StopRequested as StopRequested
from pipeline.train.ranks import Ranks

LAUNCHER = "PIPELINE_LAUNCHER"
"""The environment variable that names the process which started this one as one of several."""


_SHELLS = {"sh", "dash", "bash", "zsh", "ash", "ksh", "fish"}


_COMPILING = {"torch._dynamo.convert_frame", "torch._inductor.graph", "torch._inductor.async_compile"}


def _compiling(frame: FrameType | None) -> bool:
    """Whether a frame, or one that called it, belongs to torch's compiler."""
    while frame is not None:
        if frame.f_globals.get("__name__") in _COMPILING:
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class Parent:
    """A process whose end ends this run.

    Attributes:
        pid: This process's parent.
        shell: The parent, where it is a shell that only waits for this process; else None.
        above: The shell's parent.
    """

    pid: int
    shell: psutil.Process | None = None
    above: int = 0

    @property
    def gone(self) -> bool:
        """Whether it ended: an orphan gets another parent, and so does an orphan's shell."""
        if os.getppid() != self.pid:
            return True
        try:
            return self.shell is not None and self.shell.ppid() != self.above
        except psutil.NoSuchProcess:
            return True


def _parent() -> Parent | None:
    """The process that this run works for; None for one started by hand, which outlives its terminal.

    Under DVC that is `dvc`, which would start a second training while the orphan of a killed one still runs. It
    starts a stage through a shell, which may stay between.
    """
    if LAUNCHER in os.environ:
        return Parent(int(os.environ[LAUNCHER]))
    if "DVC_STAGE" not in os.environ:
        return None
    pid = os.getppid()
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        if parent.name() in _SHELLS:
            return Parent(pid, parent, parent.ppid())
    return Parent(pid)


@dataclass
class StopSignal:
    """Remembers that SIGINT or SIGTERM came, and notices that the parent died."""

    received: int | None = field(default=None, init=False)
    _raise_at_once: bool = field(default=False, init=False)
    parent: Parent | None = field(default_factory=_parent)

    @property
    def number(self) -> int | None:
        """The signal to stop for; None to go on. A lost parent counts as SIGTERM."""
        if self.received is None and self.parent is not None and self.parent.gone:
            self.received = signal.SIGTERM
            say("the process that started this one is gone: saving, then leaving")
        return self.received

    def check(self, ranks: Ranks | None = None) -> None:
        """Raises StopRequested once this process was asked to stop; with `ranks`, on all of them once any was."""
        received = self.number or 0
        number = received if ranks is None else int(ranks.all_reduce_max(received))
        if number:
            if not received:  # each rank looks for itself, and only the first is heard
                say("another process was asked to stop: saving, then leaving")
            raise StopRequested(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):  # a second one leaves at once; the saved states are whole
            signal.signal(each, signal.SIG_DFL)
        with suppress(RuntimeError):  # it arrived in the middle of another message
            say(f"\n{signal.Signals(number).name}: saving, then leaving (once more to leave at once)")
        if self._raise_at_once and _compiling(frame):
            raise StopRequested(number)

    @contextmanager
    def interruptible_compile(self, ranks: Ranks) -> Iterator[None]:
        """Inside the block, a signal raises StopRequested even while torch compiles, which can take minutes.

        With several ranks it does not, since the others would wait in a collective.
        """
        self._raise_at_once = ranks.world_size == 1
        try:
            yield
        finally:
            self._raise_at_once = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catches both signals inside the block."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
