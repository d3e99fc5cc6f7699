"""The time that a run is said to take: its parts, and a range where other programs are at work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import make_run, small_params

from pipeline.commands.estimate import Estimate, Span
from pipeline.commands.timing import Seconds, Speed, measure

SPEED = Speed(start=3.0, compile=20.0, window=0.5, update=0.25, evaluation=0.1)


@pytest.mark.parametrize(
    ("idle", "now", "words"),
    [
        (33, 33, "33 s"),
        (241, 250, "4 min"),
        (240, 720, "4 to 12 min"),
        (50, 300, "50 s to 5 min"),
        (4000, 40_000, "67 min to 11.1 h"),
        (0.2, 0.2, "1 s"),
        (300_000, 300_000, "3 days"),
    ],
)
def test_a_time_is_printed_in_usual_units(idle: float, now: float, words: str) -> None:
    assert str(Span(idle, now)) == words


def test_an_estimate_adds_up_all_steps_and_all_that_is_evaluated(tmp_path: Path) -> None:
    run, params = make_run(tmp_path), small_params()
    found = Estimate.of(params, run.length, run.data, SPEED)
    assert found.training.idle == found.training.now == 24 * 0.5 + 6 * 0.25
    windows = sum(len(each) for each in run.data.eval_windows.values())
    evaluations = 6 // params.train.evaluation.every + 1
    val = -(-(len(run.data.ids["val"]) - 1) // 8)
    assert found.rest.idle == pytest.approx(3.0 + 0.1 * (evaluations * windows + 2 * val))
    assert found.total.idle == found.training.idle + found.compile.idle + found.rest.idle


def test_on_a_busy_machine_it_is_a_range_from_the_time_without_the_other_programs(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = Estimate.of(small_params(), run.length, run.data, replace(SPEED, others=1.5, slowdown=3.0))
    assert (found.total.now, found.compile.idle) == (pytest.approx(3 * found.total.idle), 20.0)


@pytest.mark.parametrize("others", [0.0, 1.5])
def test_steps_are_timed_and_the_run_keeps_its_threads(others: float, tmp_path: Path) -> None:
    run, threads = make_run(tmp_path), torch.get_num_threads()
    speed = measure(run, Seconds(2.0, 1.0), 2, others)
    assert torch.get_num_threads() == threads
    assert (speed.busy, speed.others) == (others > 0, others)
    assert min(speed.window, speed.update, speed.evaluation) > 0
    assert speed.start == (1.0 if others else 2.0)
    assert speed.compile == 0.0
