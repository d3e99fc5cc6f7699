"""runs --watch: shows the latest steps of the current training run."""

from __future__ import annotations

import csv
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from pipeline.core.console import printable, say
from pipeline.train.checkpoint_store import running_process
from pipeline.train.steps import STEPS

_SECONDS = 1.0
_SHOWN = 20


def watch(root: Path, seconds: float = _SECONDS) -> None:
    """Follows the most recently changed steps.tsv below `root`.

    On a terminal, the latest lines are redrawn until Ctrl-C. Otherwise each line is printed once, until no process
    trains the run.
    """
    with suppress(KeyboardInterrupt):
        _on_terminal(root, seconds) if sys.stdout.isatty() else _as_lines(root, seconds)


def _on_terminal(root: Path, seconds: float) -> None:
    drawn = 0
    while True:
        width, height = shutil.get_terminal_size()
        folder = _newest(root)
        lines = _lines(folder) if folder else []
        shown = [*lines[:1], *lines[1:][-min(_SHOWN, max(height - 4, 1)) :], _status(folder)]
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
            say(_status(folder))
        if printed != lines[: len(printed)]:  # a resumed run has rewritten the file
            printed = []
        for line in lines[len(printed) :] if printed else [*lines[:1], *lines[1:][-_SHOWN:]]:
            say(line)
        printed = lines
        if not running:
            return
        time.sleep(seconds)


def _newest(root: Path) -> Path | None:
    """The folder of the run with the most recently written step."""
    times = {}
    for path in root.glob(f"*/{STEPS}"):
        with suppress(FileNotFoundError):
            times[path.parent] = path.stat().st_mtime
    return max(times, key=lambda folder: times[folder], default=None)


def _status(folder: Path | None) -> str:
    if folder is None:
        return "no run has written a step yet (see train.log_every)"
    process = running_process(folder)
    return f"run {folder.name}, {f'running as process {process}' if process else 'not running'}"


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
        return number if number.lstrip("-").isdigit() else f"{float(number):.5g}"
    except ValueError:
        return number
