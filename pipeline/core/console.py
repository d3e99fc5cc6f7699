"""What a person sees while a stage works: messages, a progress line, and text without control characters."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TextIO

from tqdm import tqdm
from tqdm.std import Bar

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LABEL = 9
"""Columns of the label before a fact."""
_SHORTEST_BAR, _LONGEST_BAR = 6, 40
"""Columns of the bar; where there is no room for the shortest one, there is none."""
_SECONDS_OF_RATE = 10.0
"""The speed that is shown is that of so many seconds."""
_SECONDS_BETWEEN_SAMPLES = 0.5
_SECONDS_BETWEEN_PLAIN_LINES = 15.0


def printable(text: str) -> str:
    """`text` with control characters, such as terminal escape sequences, replaced by visible escapes."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def listed(names: Sequence[str], most: int = 5, count: int = 0) -> str:
    """The first names of a list, and how many more there are; of `count` if `names` are only the first of them."""
    count = max(count, len(names))
    more = f" and {count - most:,} more" if count > most else ""
    return ", ".join(names[:most]) + more


def aligned(
    rows: Sequence[Sequence[str]], right: Container[int] = (), width: int | None = None, indent: str = ""
) -> Iterator[str]:
    """Rows of cells as lines with aligned columns; the text of the columns `right` is at the right.

    A table wider than `width` (unless given: that of the terminal, or COLUMNS where there is none) is cut into
    several, each with the first column.
    """
    width = width or columns(sys.stdout) or _columns_set() or sys.maxsize
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, shown in enumerate(_parts(widths, width - len(indent))):
        if number:
            yield ""
        for row in rows:
            cells = ((row[n].rjust if n in right else row[n].ljust)(widths[n]) for n in shown)
            yield f"{indent}{'  '.join(cells)}".rstrip()


def _parts(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """The columns of each part of a table: the first one and as many others as fit."""
    shown, used = [0], sum(widths[:1])
    for column, own in enumerate(widths[1:], start=1):
        if used + 2 + own > width and len(shown) > 1:
            yield shown
            shown, used = [0], widths[0]
        shown.append(column)
        used += 2 + own
    yield shown


def _columns_set() -> int:
    """The environment's COLUMNS; 0 if it is not set."""
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0


def json_line(value: Mapping[str, Any]) -> str:
    """One line of JSON lines; control characters are escaped, as in `printable`."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", line) + "\n"


def wrapped(text: str, file: TextIO, indent: int = 2) -> str:
    """`text` with the lines that are wider than the terminal broken at spaces; the same text if `file` is none.

    Continuation lines begin where the line itself does, if that is not at the margin, else at `indent`.
    """
    width = columns(file)
    if width is None:
        return text
    return "\n".join(_wrapped(line, width, indent) for line in text.split("\n"))


def _wrapped(line: str, width: int, indent: int) -> str:
    if len(line) <= width:
        return line
    margin = len(line) - len(line.lstrip(" ")) or indent
    lines = textwrap.wrap(
        line, max(width, margin + 20), subsequent_indent=" " * margin, expand_tabs=False, replace_whitespace=False,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines)


def columns(file: TextIO) -> int | None:
    """The width of the terminal that `file` writes to; None if it is not a terminal."""
    try:
        return (os.get_terminal_size(file.fileno()).columns or 80) if file.isatty() else None
    except (OSError, ValueError):  # closed, or it has no file descriptor
        return None


def say(text: str, indent: int = 2, wrap: bool = True) -> None:
    """Prints a message on its own line, above a live progress line if there is one.

    On a terminal a long line is broken at spaces, unless `wrap` is False; see `wrapped`. If the reader of a pipe is
    gone (`| head`, or Ctrl-C also ended `| tee`), the work continues without output.
    """
    text = printable(text)
    _print(wrapped(text, sys.stdout, indent) if wrap else text)


def _print(text: str) -> None:
    stream = sys.stdout.stream if isinstance(sys.stdout, _AboveTheLine) else sys.stdout
    try:
        with tqdm.external_write_mode(file=sys.stdout):  # which takes the live line away meanwhile
            stream.write(f"{text}\n")
            stream.flush()
    except BrokenPipeError:
        ignore_output()


class _AboveTheLine(io.TextIOBase):
    """Stands in for the standard output while there is a live line: what a plugin prints comes above that line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self._begun = stream, ""

    def write(self, text: str) -> int:
        """Prints the lines that are complete."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            _print(wrapped(line, self.stream))
        return len(text)

    def begin(self) -> None:
        """Takes the stream's place."""
        sys.stdout = self

    def end(self) -> None:
        """Prints what is left of a line, and gives the place back, unless another has taken it: a live line in an
        abandoned generator ends late."""
        if self._begun:
            self.write("\n")
        if sys.stdout is self:
            sys.stdout = self.stream

    def fileno(self) -> int:
        """The stream's own."""
        return self.stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()


def ignore_output() -> None:
    """Discards everything that is printed from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fact(label: str, text: str) -> None:
    """Prints a label and what a stage read, found or wrote."""
    say(f"{label:<{_LABEL}}{text}", indent=_LABEL)


def plain_terminal() -> bool:
    """Whether the terminal, by its own account, can neither redraw a line nor show colours."""
    return os.environ.get("TERM") == "dumb"


def colourless() -> bool:
    """Whether colours are not wanted (https://no-color.org) or not possible."""
    return bool(os.environ.get("NO_COLOR")) or plain_terminal()


class _Line(tqdm):  # type: ignore[misc]
    """The live line, with a text of our own for its width."""

    def __init__(self, text: Callable[[_Line, int], str], **options: Any) -> None:
        self._text = text
        super().__init__(**options)

    def __str__(self) -> str:
        return self._text(self, (self.format_dict["ncols"] or 80) - 1)

    def clear(self, nolock: bool = False) -> None:
        """Removes the line, and what a terminal shows of Ctrl-C behind it."""
        super().clear(nolock)
        if not self.disable:
            self.fp.write("\x1b[K")

    def drawn_bar(self, share: float, width: int) -> str:
        """A bar of which `share` is filled, from characters that the terminal's encoding has."""
        return format(Bar(min(share, 1.0), default_len=width, charset=Bar.ASCII if self.ascii else Bar.UTF), "")


class Progress:
    """One live line on a terminal; on a pipe, a plain line now and then.

    It shows how much is done, the time left and the speed of the last seconds, and the values given to `update`.
    What does not fit the terminal is left out: first the bar, then parts from the end.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: int | None = None,
        initial: int = 0,
        work_unit: str = "",
        work_total: int | None = None,
    ) -> None:
        """
        Args:
            what: What is done, such as "training".
            unit: What is counted, such as "step".
            total: How many units there are, if that is known.
            initial: How many of them were done before.
            work_unit: What the speed is told in, such as "token"; the unit that is counted, unless given.
            work_total: How many of those are to be done from now on; needed with `work_unit`.
        """
        self._what, self._unit, self._total, self._done = what, unit, total, initial
        self._work_unit, self._work = work_unit or unit, 0
        self._work_total = work_total if work_unit else total and total - initial
        self._shown: dict[str, str] = {}
        self._waits: list[str] = []
        self._waiting_since = self._waited = 0.0
        self._exit = ExitStack()
        self._printed = time.monotonic()
        self._samples = deque([(self._printed, 0)])  # the clock, which stands still in `wait`, and the work done
        self._bar = _Line(
            self._text, total=total, initial=initial, disable=True if plain_terminal() else None,
            dynamic_ncols=True, leave=False, miniters=1,
        )  # fmt: skip

    def update(self, amount: int, work: int | None = None, **shown: str) -> None:
        """Counts `amount` units, or `work` of another unit, as done, and shows the named values."""
        self._done += amount
        self._work += amount if work is None else work
        self._shown |= shown
        now = time.monotonic()
        clock = now - self._waited
        if clock - self._samples[-1][0] >= _SECONDS_BETWEEN_SAMPLES:
            self._samples.append((clock, self._work))
            while len(self._samples) > 2 and clock - self._samples[1][0] >= _SECONDS_OF_RATE:
                self._samples.popleft()
        self._bar.update(amount)
        if self._bar.disable and now - self._printed >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._printed = now
            total = f" of {self._total:,}" if self._total else ""
            say(
                "  ".join(
                    [f"{self._what}: {self._done:,}{total} {self._unit}s", *self._values(), *self._time_left()]
                )
            )

    def show(self, **shown: str) -> None:
        """Shows the named values from now on; those named first, first."""
        self._shown |= shown

    @contextmanager
    def waiting(self, why: str) -> Iterator[None]:
        """Inside, `why` is shown in place of the time left, and the time does not count for the speed."""
        self.wait(why)
        try:
            yield
        finally:
            self.go_on()

    def wait(self, why: str) -> None:
        """Begins what `waiting` describes; until `go_on`."""
        if not self._waits:
            self._waiting_since = time.monotonic()
        self._waits.append(why)
        self._bar.refresh()

    def go_on(self) -> None:
        """Ends what `wait` began."""
        self._waits.pop()
        if not self._waits:
            self._waited += time.monotonic() - self._waiting_since
        self._bar.refresh()

    def seconds_left(self) -> float | None:
        """The time to the end at the speed of the last seconds; None while nothing is known of it."""
        rate = self._rate()
        return (self._work_total - self._work) / rate if rate and self._work_total else None

    def _rate(self) -> float:
        (since, before), (until, work) = self._samples[0], self._samples[-1]
        return (work - before) / (until - since) if until > since else 0.0

    def _time_left(self) -> list[str]:
        seconds = self.seconds_left()
        return [] if seconds is None else [f"{format_duration(seconds)} left"]

    def _values(self) -> list[str]:
        rate = self._rate()
        speed = [f"{_short(rate)} {self._work_unit}s/s"] if rate else []
        return [*(f"{name} {value}" for name, value in self._shown.items()), *speed]

    def _text(self, line: _Line, width: int) -> str:
        """The live line: the parts that fit, and a bar where there is room."""
        mark = "..." if line.ascii else "…"
        text = f"{self._what} {_short(self._done)}" + (
            f"/{_short(self._total)}" if self._total else f" {self._unit}s"
        )
        place, rest = len(text), ""
        for part in [*([f"{self._waits[-1]} {mark}"] if self._waits else self._time_left()), *self._values()]:
            if len(text) + len(rest) + 2 + len(part) > width:
                break
            rest += f"  {part}"
        room = min(width - place - len(rest) - 1, _LONGEST_BAR)
        if not self._total or room < _SHORTEST_BAR:
            return (text + rest)[:width]
        return f"{text} {line.drawn_bar(self._done / self._total, room)}{rest}"

    def __enter__(self) -> Self:
        if not self._bar.disable:
            above = _AboveTheLine(sys.stdout)
            above.begin()
            self._exit.callback(above.end)
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()
        self._bar.clear()
        self._bar.close()


def _short(number: float) -> str:
    """A number in few characters: 0.25, 9,999, 412k, 1.23M."""
    if number < 10:
        return f"{number:.2g}"
    return f"{number:,.0f}" if number < 100_000 else str(tqdm.format_sizeof(number))


def format_duration(seconds: float) -> str:
    """0:07, 2:41, 1:02:03 or 12 days."""
    whole = round(seconds)
    if whole >= 100 * 3600:
        return f"{whole / 86400:.0f} days"
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
