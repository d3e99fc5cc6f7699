"""runs --watch: the steps of a training run."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import pytest
from conftest import Project

from pipeline.commands import watch
from pipeline.core.files import lock
from pipeline.train.steps import STEPS, LiveTable


def rows(count: int) -> list[dict[str, float]]:
    return [{"step": step, "train.objective": 3.0 - step / 16} for step in range(1, count + 1)]


@pytest.fixture
def live(tmp_path: Path) -> LiveTable:
    """A run with thirty steps, and an older run."""
    for name, age in (("older", 100.0), ("newer", 0.0)):
        table = LiveTable(tmp_path / name / STEPS)
        table.update(rows(30))
        os.utime(table.path, (time.time() - age,) * 2)
    return table


def sleeping(monkeypatch: pytest.MonkeyPatch, *then: object) -> None:
    """Each sleep performs the next action; after the last one, KeyboardInterrupt is raised."""
    things = iter(then)

    def sleep(seconds: float) -> None:
        thing = next(things, None)
        if thing is None:
            raise KeyboardInterrupt
        thing()  # type: ignore[operator]

    monkeypatch.setattr(watch.time, "sleep", sleep)


def test_elsewhere_each_line_is_shown_once_until_the_run_ends(
    live: LiveTable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    live.show(60, [{"step": 0, "val.loss": 2.5}])
    running = lock(live.path.parent / "lock", "training")
    running.__enter__()
    sleeping(monkeypatch, lambda: live.update(rows(31)), lambda: running.__exit__(None, None, None))
    watch.watch(live.path.parents[1])
    first, header, *lines = capsys.readouterr().out.splitlines()
    assert first == f"run newer, process {os.getpid()}: step 30 of 60, val loss 2.5000"
    assert header.split() == ["step", "train.objective"]
    assert [line.split()[0] for line in lines] == [str(step) for step in range(11, 32)]
    assert lines[-1].split()[1] == "1.0625"


def test_on_a_terminal_the_last_lines_are_drawn_in_one_place_until_ctrl_c(
    live: LiveTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "9")
    sleeping(monkeypatch, lambda: live.update(rows(31)))
    watch.watch(live.path.parents[1])
    before, after = out.getvalue().split("\x1b[7F\x1b[J")
    assert [line.split()[0] for line in after.splitlines()] == ["step", "27", "28", "29", "30", "31", "run"]
    assert [line.split()[0] for line in before.splitlines()][1:6] == ["26", "27", "28", "29", "30"]
    assert max(map(len, after.splitlines())) == 19


def test_before_its_first_step_a_run_is_waited_for_and_its_launcher_is_named(
    live: LiveTable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIPELINE_LAUNCHER", "4321")
    begun = LiveTable(live.path.parents[1] / "begun" / STEPS)
    begun.show(60, [])
    sleeping(monkeypatch)
    with lock(begun.path.parent / "lock", "training"):
        watch.watch(live.path.parents[1])
    assert capsys.readouterr().out.startswith("run begun, process 4321: waiting for the first step")


def test_the_time_left_is_that_of_the_steps_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(clock))
    speed = watch._Speed()
    assert [speed.seconds_left(Path("a"), step, 60) for step in (10, 20, 10)] == [None, 40.0, None]


def test_a_finished_run_and_none_at_all(project: Project, trained: Path) -> None:
    assert "train.log_every" in project.succeed("runs", "--watch").out
    (project.root / ".resume").symlink_to(trained / ".resume")
    out = project.succeed("runs", "--watch").out
    assert "not running" in out
    assert "train.objective" in out
