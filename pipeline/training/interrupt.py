"""SIGINT and SIGTERM: the run stops between two micro-batches, is saved, and exits with 130 or 143."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pipeline.console import say


class StopSignal:
    """Remembers that the process was asked to stop."""

    number: int | None = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)  # a second one leaves at once; the saved states are whole
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
