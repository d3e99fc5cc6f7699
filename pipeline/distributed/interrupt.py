"""Requests to stop a run early: SIGINT, SIGTERM, or the death of the parent process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

import psutil

from pipeline.core.console import say
from pipeline.core.errors import StopRequested
from pipeline.distributed.ranks import Ranks

LAUNCHER = "PIPELINE_LAUNCHER"
"""The environment variable with the id of the launcher that started this process as one of several ranks."""


_SHELLS = {"sh", "dash", "bash", "zsh", "ash", "ksh", "fish"}


_COMPILING = {"torch._dynamo.convert_frame", "torch._inductor.graph", "torch._inductor.async_compile"}


def _compiling(frame: FrameType | None) -> bool:
    """Whether a frame or one of its callers belongs to torch's compiler."""
    while frame is not None:
        if frame.f_globals.get("__name__") in _COMPILING:
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class Parent:
    """The parent process, whose death ends this run.

    Attributes:
        pid: The id of the parent.
        shell: The parent, if it is a shell that only waits for this process; else None.
        above: The id of the shell's parent.
    """

    pid: int
    shell: psutil.Process | None = None
    above: int = 0

    @property
    def died(self) -> bool:
        """Whether it died: then this process, or its shell, has got another parent."""
        if os.getppid() != self.pid:
            return True
        try:
            return self.shell is not None and self.shell.ppid() != self.above
        except psutil.NoSuchProcess:
            return True


def _parent() -> Parent | None:
    """The process that this run must not outlive; None for a run started by hand.

    Under DVC it is `dvc`: after a kill, the next `dvc repro` would start a second training beside the orphan. DVC
    starts stages through a shell, which may remain between the two.
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
    """Records SIGINT and SIGTERM, and detects the death of the parent."""

    received: int | None = field(default=None, init=False)
    _raise_at_once: bool = field(default=False, init=False)
    parent: Parent | None = field(default_factory=_parent)

    @property
    def number(self) -> int | None:
        """The signal to stop for, or None. The death of the parent counts as SIGTERM."""
        if self.received is None and self.parent is not None and self.parent.died:
            self.received = signal.SIGTERM
            say("the parent process died: saving, then exiting")
        return self.received

    def check(self, ranks: Ranks | None = None) -> None:
        """Raises StopRequested if this process was asked to stop; with `ranks`, on all ranks if any of them was."""
        received = self.number or 0
        number = received if ranks is None else int(ranks.all_reduce_max(received))
        if number:
            if not received:
                say("another rank was asked to stop: saving, then exiting")
            raise StopRequested(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):  # a second signal kills; checkpoints stay intact
            signal.signal(each, signal.SIG_DFL)
        with suppress(RuntimeError):  # it interrupted another print
            say(f"\n{signal.Signals(number).name}: saving, then exiting (repeat it to exit at once)")
        if self._raise_at_once and _compiling(frame):
            raise StopRequested(number)

    @contextmanager
    def interruptible_compile(self, ranks: Ranks) -> Iterator[None]:
        """Inside the block, a signal raises StopRequested even while torch compiles, which can take minutes.

        Not with several ranks: the others would wait in a collective.
        """
        self._raise_at_once = ranks.world_size == 1
        try:
            yield
        finally:
            self._raise_at_once = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handles both signals inside the block."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
