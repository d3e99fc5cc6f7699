"""When a run has to stop before its end: a signal came, or the process that it works for is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from pipeline.console import say
from pipeline.training.distributed import Ranks

LAUNCHER = "PIPELINE_LAUNCHER"
"""The environment variable that names the process which started this one as one of several."""


class Stopping(BaseException):
    """The run stops here, between two micro-batches or evaluation batches; what is half done is done again later.

    No Exception, so that no plugin catches it by accident.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _parent() -> int | None:
    """The process whose end ends this run; None for one started by hand, which outlives its terminal.

    Under DVC that is `dvc`, which would start a second training while the orphan of a killed one still runs.
    """
    if LAUNCHER in os.environ:
        return int(os.environ[LAUNCHER])
    return os.getppid() if "DVC_STAGE" in os.environ else None


@dataclass
class StopSignal:
    """Remembers that SIGINT or SIGTERM came, and notices that the parent died."""

    received: int | None = field(default=None, init=False)
    parent: int | None = field(default_factory=_parent)

    @property
    def number(self) -> int | None:
        """The signal to stop for; None to go on. A lost parent counts as SIGTERM."""
        if self.received is None and self.parent is not None and os.getppid() != self.parent:
            self.received = signal.SIGTERM
            say("the process that started this one is gone: saving, then leaving")
        return self.received

    def check(self, ranks: Ranks | None = None) -> None:
        """Raises Stopping once this process was asked to stop; with `ranks`, on all of them once any was."""
        number = self.number or 0
        if ranks is not None:
            number = int(ranks.largest(number))
        if number:
            raise Stopping(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):  # a second one leaves at once; the saved states are whole
            signal.signal(each, signal.SIG_DFL)
        with suppress(RuntimeError):  # it arrived in the middle of another message
            say(f"\n{signal.Signals(number).name}: saving, then leaving (once more to leave at once)")

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
