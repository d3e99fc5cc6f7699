"""runs --watch: shows the latest steps of the current training run."""

from __future__ import annotations

import csv
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from pipeline.core.console import format_duration, printable, say
from pipeline.core.errors import DataError
from pipeline.core.values import read_values
from pipeline.train.checkpoint_store import running_process
from pipeline.train.steps import LIVE, STEPS, LiveStatus

_SECONDS = 1.0
_SHOWN = 20


def watch(root: Path, seconds: float = _SECONDS) -> None:
    """Follows the run below `root` that most recently began or wrote a step.

    On a terminal, the latest lines are redrawn until Ctrl-C. Otherwise each line is printed once, until no process
    trains the run.
    """
    with suppress(KeyboardInterrupt):
        _on_terminal(root, seconds) if sys.stdout.isatty() else _as_lines(root, seconds)


def _on_terminal(root: Path, seconds: float) -> None:
    drawn, speed = 0, _Speed()
    while True:
        width, height = shutil.get_terminal_size()
        folder = _newest(root)
        lines = _lines(folder) if folder else []
        shown = [*lines[:1], *lines[1:][-min(_SHOWN, max(height - 4, 1)) :], _status(folder, lines, speed)]
        up = f"\x1b[{drawn}F\x1b[J" if drawn else ""
        sys.stdout.write(up + "".join(f"{line[: width - 1]}\n" for line in shown))
        sys.stdout.flush()
        drawn = len(shown)
        time.sleep(seconds)


def _as_lines(root: Path, seconds: float) -> None:
    printed: list[str] = []
    watched: Path | None = Path()  # not yet a run
    while True:
        folder = _newest(root)
        running = folder and running_process(folder)  # checked before reading, so that the last line is not missed
        lines = _lines(folder) if folder else []
        if folder != watched:
            watched, printed = folder, []
            say(_status(folder, lines, _Speed()))
        if printed != lines[: len(printed)]:  # a resumed run has rewritten the file
            printed = []
        for line in lines[len(printed) :] if printed else [*lines[:1], *lines[1:][-_SHOWN:]]:
            say(line)
        printed = lines
        if not running:
            return
        time.sleep(seconds)


class _Speed:
    """The time left of a run, from the steps that it took while it was watched."""

    def __init__(self) -> None:
        self._folder, self._first, self._since = Path(), 0, 0.0

    def seconds_left(self, folder: Path, step: int, total: int) -> float | None:
        """The time left; None until steps were seen."""
        now = time.monotonic()
        if folder != self._folder or step < self._first:
            self._folder, self._first, self._since = folder, step, now
        done = step - self._first
        return (total - step) * (now - self._since) / done if done else None


def _newest(root: Path) -> Path | None:
    """The folder of the run that most recently began or wrote a step."""
    times: dict[Path, float] = {}
    for name in (STEPS, LIVE):
        for path in root.glob(f"*/{name}"):
            with suppress(FileNotFoundError):
                times[path.parent] = max(path.stat().st_mtime, times.get(path.parent, 0.0))
    return max(times, key=lambda folder: times[folder], default=None)


def _status(folder: Path | None, lines: list[str], speed: _Speed) -> str:
    """One line: which run, which process, how far, and the last validation loss."""
    if folder is None:
        return "waiting for the first step: no run has written one yet (see train.log_every)"
    process = running_process(folder)
    live = _live(folder)
    if live and process == str(live.process):
        process = str(live.launcher)
    where = f"run {folder.name}, {f'process {process}' if process else 'not running'}: "
    if len(lines) < 2:
        return where + "waiting for the first step (see train.log_every)"
    first = lines[-1].split()[:1]
    step = int(first[0]) if first and first[0].isdecimal() else 0
    if live is None:
        return f"{where}step {step:,}"
    left = speed.seconds_left(folder, step, live.total_steps) if process else None
    return where + ", ".join(
        [
            f"step {step:,} of {live.total_steps:,}",
            *([f"{format_duration(left)} left"] if left is not None else []),
            *([f"val loss {live.val_loss:.4f}"] if live.val_loss is not None else []),
        ]
    )


def _live(folder: Path) -> LiveStatus | None:
    try:
        return read_values(folder / LIVE, LiveStatus, "")
    except (OSError, DataError):  # of an earlier version, or the run was deleted in the meantime
        return None


def _lines(folder: Path) -> list[str]:
    """The header and the rows of the file, in aligned columns."""
    try:
        rows = list(csv.reader((folder / STEPS).read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    except FileNotFoundError:  # the run was deleted in the meantime
        return []
    header = rows[0] if rows else []
    whole = [row for row in rows[1:] if len(row) == len(header)]  # the last line may be incomplete
    widths = [max(len(name), 10) for name in header]
    return [
        "  ".join(f"{printable(text):>{width}}" for text, width in zip(row, widths, strict=True))
        for row in [header, *(list(map(_format_number, row)) for row in whole)]
    ]


def _format_number(number: str) -> str:
    try:
        return number if number.lstrip("-").isdigit() else f"{float(number):#.5g}"
    except ValueError:
        return number
