"""How torch's threads wait for each other on a CPU: spinning on an idle machine, asleep on a busy one.

Between two operations, threads of GNU's OpenMP spin for milliseconds. That is fastest while each has a core of its
own; where another process needs a core, spinning threads take it from those that compute, and two threads are
slower than one. The number of spins cannot be set at run time, but libgomp itself spins a thousand times less while
a process has more OpenMP threads than there are cores. So a second, sleeping team of threads is kept while the
machine is busy; that is enough if a team has more than half as many threads as there are cores, as by default.

Results do not depend on it: each operation is divided among the same number of threads.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

_SECONDS = 0.25
"""The time between two looks at the machine."""
_BUSY, _IDLE = 0.05, 0.02
"""The share of time that threads wait for a core from which the machine is busy, and below which it is idle."""
_CALM = 8
"""Looks in a row that must find the machine idle before the threads spin again."""

_watching = threading.Lock()


def watch() -> None:
    """Watches from a background thread, once per process, whether the threads of this process wait for cores. Does
    nothing where the system does not tell (outside Linux)."""
    if Path("/proc/self/schedstat").is_file() and _watching.acquire(blocking=False):
        threading.Thread(target=_watch, name="waiting", daemon=True).start()


def _watch() -> None:
    never, contention, asleep = threading.Event(), Contention(), SleepingThreads()
    before = time.monotonic()
    while not never.wait(_SECONDS):
        now = time.monotonic()
        asleep.keep(contention.busy(seconds_waited(), (now - before) * torch.get_num_threads()))
        before = now


class Contention:
    """Whether the machine is busy, from the time that threads wait for a core; with some inertia."""

    def __init__(self) -> None:
        self._waited, self._calm, self._busy = float("inf"), 0, False

    def busy(self, waited: float, elapsed: float) -> bool:
        """Whether other processes need the cores.

        Args:
            waited: Seconds that the threads waited for a core, since the process began.
            elapsed: Seconds since the last call, times the number of threads.
        """
        share, self._waited = max(waited - self._waited, 0.0) / elapsed, waited
        self._calm = self._calm + 1 if share < _IDLE else 0
        self._busy = share > _BUSY or (self._busy and self._calm < _CALM)
        return self._busy


def seconds_waited() -> float:
    """Seconds that this process's threads were ready to run but had no core, in all."""
    nanoseconds = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread has ended
            nanoseconds += int((task / "schedstat").read_text(encoding="ascii").split()[1])
    return nanoseconds / 1e9


class SleepingThreads:
    """A second team of OpenMP threads that sleep; while it exists, those of all teams spin little."""

    def __init__(self) -> None:
        self._leave: threading.Event | None = None

    def keep(self, wanted: bool) -> None:
        """Creates the team, or ends it."""
        if wanted and self._leave is None:
            self._leave = threading.Event()
            threading.Thread(target=_sleep, args=(self._leave,), name="asleep", daemon=True).start()
        elif not wanted and self._leave is not None:
            self._leave.set()
            self._leave = None


def _sleep(leave: threading.Event) -> None:
    torch.zeros(1 << 17).add_(1)  # large enough for several threads: this thread gets a team of its own
    leave.wait()  # a team ends with the thread that it belongs to
