"""What a person sees while a stage works: messages, a progress line, and text without control characters."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tqdm import tqdm

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BAR = "{desc} {n_fmt}/{total_fmt} {bar} {remaining} left{postfix}"
_SECONDS_BETWEEN_PLAIN_LINES = 15.0


def printable(text: str) -> str:
    """`text` with control characters, such as terminal escape sequences, replaced by visible escapes."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def json_line(value: Mapping[str, Any]) -> str:
    """One line of JSON lines; control characters are escaped, as in `printable`."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", line) + "\n"


def say(text: str) -> None:
    """Prints a message on its own line, above a live progress line if there is one.

    If the reader of a pipe is gone (`| head`, or Ctrl-C also ended `| tee`), the work continues without output.
    """
    try:
        tqdm.write(printable(text), file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        ignore_output()


def ignore_output() -> None:
    """Discards everything that is printed from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fact(label: str, text: str) -> None:
    """Prints a label and what a stage read, found or wrote."""
    say(f"{label:<9}{text}")


class Progress(AbstractContextManager["Progress"]):
    """One live line on a terminal; on a pipe, a plain line now and then.

    The live line shows a bar, the speed in `unit`s and the time left; both show the values given to `update`.
    """

    def __init__(self, what: str, unit: str, total: int | None = None, initial: int = 0) -> None:
        self._what, self._unit, self._total = what, unit, total
        self._initial = self._done = initial
        self._start = self._printed = time.monotonic()
        self._bar = tqdm(
            desc=what, unit=unit, total=total, initial=initial, disable=None,  # None: without a terminal
            unit_scale=total is None or total > 100_000, dynamic_ncols=True, leave=False,
            bar_format=_BAR if total else None,
        )  # fmt: skip

    def update(self, amount: int, **shown: str) -> None:
        """Counts `amount` units done and shows the named values."""
        self._done += amount
        self._bar.update(amount)
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        now = time.monotonic()
        if self._bar.disable and now - self._printed >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._printed = now
            total = f" of {self._total:,}" if self._total else ""
            parts = [f"{self._what}: {self._done:,}{total} {self._unit}s"]
            parts += [f"{name} {value}" for name, value in shown.items()]
            rate = (self._done - self._initial) / (now - self._start)
            if self._total and rate:
                parts.append(f"{(self._total - self._done) / rate:.0f} s left")
            say("  ".join(parts))

    def __exit__(self, *error: object) -> None:
        self._bar.close()
