"""Messages and the progress line on terminals of several widths."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest

from pipeline.core import console
from pipeline.core.console import Progress, aligned, columns, say, wrapped


@pytest.fixture(autouse=True)
def _no_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def ends() -> tuple[int, int]:
    """A terminal's own end, and the end that programs write to."""
    return pty.openpty()


@pytest.fixture
def terminal(ends: tuple[int, int]) -> Iterator[tuple[TextIO, Callable[[int], None]]]:
    """A terminal to write to, and what sets its width."""
    master, slave = ends

    def resize(width: int) -> None:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    resize(80)
    with os.fdopen(slave, "w", encoding="utf-8") as file:
        yield file, resize
    os.close(master)


class Clock:
    """Stands in for time.monotonic."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    return clock


def test_lines_break_between_words_on_a_terminal_and_nowhere_else(
    terminal: tuple[TextIO, Callable[[int], None]],
) -> None:
    file, resize = terminal
    text = "read     " + "a-hyphenated-word, " * 12 + "artifacts/" + "long" * 30
    assert columns(sys.stdout) is None
    assert wrapped(text, sys.stdout) == text
    for width in (40, 80, 120):
        resize(width)
        first, *others = wrapped(text, file, indent=9).split("\n")
        assert [*first.split(), *(word for line in others for word in line.split())] == text.split()
        assert all(len(line) <= width or len(line.split()) == 1 for line in (first, *others))
        assert all(line.startswith(" " * 9) for line in others)
    assert wrapped("short\n  kept   as it is", file) == "short\n  kept   as it is"


def test_the_line_fits_every_width_with_its_longest_values(
    terminal: tuple[TextIO, Callable[[int], None]], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, resize = terminal
    monkeypatch.setattr(sys, "stderr", file)
    with Progress("training", "step", 99_999, 50_000, work_unit="token", work_total=10**9) as progress:
        progress.show(val="10.123")
        for _ in range(3):
            clock.now += 1
            progress.update(1, work=9_999, loss="10.123")
        for width in range(20, 121):
            resize(width)
            assert len(str(progress._bar)) < width
        resize(80)
        for part in ("training 50,003/99,999", "27:46:47 left", "val 10.123", "loss 10.123", "9,999 tokens/s"):
            assert part in str(progress._bar)
        with progress.waiting("compiling"):
            assert "compiling …" in str(progress._bar)
            assert "left" not in str(progress._bar)
        assert "left" in str(progress._bar)


def test_the_speed_is_that_of_the_last_seconds_without_the_time_of_waiting(
    terminal: tuple[TextIO, Callable[[int], None]], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal[0])
    with Progress("training", "step", 1000, work_unit="token", work_total=100_000) as progress:
        for tokens in [10] * 100 + [500] * 12:
            clock.now += 1
            progress.update(1, work=tokens)
        assert "500 tokens/s" in str(progress._bar)
        with progress.waiting("evaluating"):
            clock.now += 1000
        clock.now += 1
        progress.update(1, work=500)
        assert "500 tokens/s" in str(progress._bar)
        assert progress.seconds_left() == (100_000 - 1000 - 13 * 500) / 500


def test_without_a_terminal_a_plain_line_comes_now_and_then(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("training", "step", 100) as progress:
        for _ in range(40):
            clock.now += 1
            progress.update(1, loss="3.200")
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "training: 15 of 100 steps  loss 3.200  1 steps/s  1:25 left",
        "training: 30 of 100 steps  loss 3.200  1 steps/s  1:10 left",
    ]


def test_a_terminal_that_cannot_redraw_a_line_gets_plain_lines(
    terminal: tuple[TextIO, Callable[[int], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal[0])
    monkeypatch.setenv("TERM", "dumb")
    assert Progress("training", "step", 100)._bar.disable


def test_what_a_plugin_prints_comes_above_the_line(
    terminal: tuple[TextIO, Callable[[int], None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal[0])
    before = sys.stdout
    with Progress("training", "step", 100):
        print("first", 1, end="")
        print("\nsecond\nthird", end="")
        say("said")
        assert capsys.readouterr().out == "first 1\nsecond\nsaid\n"
    assert capsys.readouterr().out == "third\n"
    assert sys.stdout is before


def test_messages_and_prints_take_the_place_of_the_line(
    ends: tuple[int, int], terminal: tuple[TextIO, Callable[[int], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal[0])
    with Progress("training", "step", 100):
        say("said")
        print("printed")
    print("end", flush=True)
    received = b""
    while b"end" not in received:
        received += os.read(ends[0], 65536)
    drawn, _, _ = received.decode().partition("end")
    for text in ("said", "printed"):
        before, after = drawn.split(f"{text}\r\n")
        assert before.endswith("\r\x1b[K")
        assert "training 0/100" in after  # drawn again
    assert drawn.rstrip("\r").endswith("\x1b[K")


def test_columns_are_aligned_and_lines_have_no_trailing_spaces() -> None:
    rows = [["", "size", ""], ["a", "1", "yes"], ["bcd", "10,000", ""]]
    assert list(aligned(rows, right=(1,))) == ["       size", "a         1  yes", "bcd  10,000"]


def test_a_table_wider_than_the_terminal_is_cut_between_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["", *(f"column {number}" for number in range(10))], ["row", *(str(number) for number in range(10))]]
    monkeypatch.delenv("COLUMNS", raising=False)
    assert len([*aligned(rows)]) == 2
    monkeypatch.setenv("COLUMNS", "40")  # where there is no terminal
    lines = [*aligned(rows, indent="  ")]
    assert lines == [*aligned(rows, width=40, indent="  ")]
    assert max(map(len, lines)) <= 40
    assert [word for line in lines for word in line.split() if word.isdecimal()].count("9") == 2
    assert sum(line.startswith("  row ") for line in lines) == lines.count("") + 1
    assert [*aligned([], width=40)] == []
