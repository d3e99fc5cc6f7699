"""Trial steps: their measurements match training, and only the child process dies if memory runs out."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from conftest import TINY, Project

from pipeline.commands import trial
from pipeline.commands.trial import Memory, try_steps
from pipeline.core.paths import Paths
from pipeline.params.reader import load_params

# Most of what these take is activations, which need far more than Python and torch.
LARGE = (
    *TINY,
    "model.context_length=256",
    "model.n_heads=8",
    "model.emb_dim=128",
    "model.dropout=0.1",
    "train.batch_size=32",
    "train.micro_batch_size=16",
    "train.budget.amount=2",
    "train.evaluation.every=2",
    "train.precision=fp32",
    "runtime.keep_memory=false",  # what is kept in unusable parts differs from run to run
)


def test_what_is_measured_is_what_training_takes(trained_project: Project) -> None:
    root = trained_project.root
    settings = [part for setting in LARGE for part in ("--set", setting)]
    subprocess.run(
        [sys.executable, "-m", "pipeline", "train", *settings], cwd=root, check=True, capture_output=True
    )
    taken = json.loads((root / "metrics" / "performance.json").read_text())["peak_memory_bytes"]
    paths = Paths(root)
    found = try_steps(load_params(root / "params.yaml", LARGE), paths, paths.splits)
    assert found.micro_batch_size == 16
    assert found.memory.activations > found.memory.python
    assert found.memory.total == pytest.approx(taken, rel=0.15)


@pytest.mark.parametrize("how", ["import os; os.kill(os.getpid(), 9)", "torch.empty(1 << 60)"])
def test_a_child_that_runs_out_of_memory_is_one_line(how: str, project: Project) -> None:
    path = project.root / "plugins" / "losses" / "cross_entropy.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        "import os\n" + text.replace("        return output.", f"        {how}\n        return output.")
    )
    result = project.run("check")
    assert result.code == 1
    told = [line for line in result.out.splitlines() if line.startswith("PROBLEM")]
    assert len(told) == 1
    assert "memory" in told[0]
    assert "train.micro_batch_size" in told[0]
    assert "Traceback" not in result.out + result.err


class Steps:
    """Stands in for the steps: each window takes `seconds` and 30 bytes beside 100 that are there at the start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float, memory: float = 1e9) -> None:
        self.peak, self.now, self.seconds = 100, 0.0, seconds
        monkeypatch.setattr(trial, "_NoUpdates", lambda plan, accumulates: None)
        monkeypatch.setattr(trial, "replace", lambda plan, **changes: plan)
        monkeypatch.setattr(trial, "_compute", self.compute)
        monkeypatch.setattr(trial, "peak_memory", lambda device: self.peak)
        monkeypatch.setattr(trial, "memory_per_process", lambda device: memory)
        monkeypatch.setattr(trial.time, "perf_counter", lambda: self.now)

    def compute(self, plan: Any, size: int) -> float:
        self.peak = max(self.peak, 100 + 30 * size)
        self.now += self.seconds * size
        return self.seconds * size


class Plan:
    device = None


@pytest.mark.parametrize(
    ("seconds", "memory", "tried"),
    [(0.001, 1e9, [1, 2, 4, 8, 12]), (1.0, 1e9, [1, 2, 4]), (60.0, 1e9, [1, 2]), (0.001, 350, [1, 2, 4, 8])],
)
def test_sizes_double_as_far_as_time_and_memory_reach(
    seconds: float, memory: float, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Steps(monkeypatch, seconds, memory)
    plan: Any = Plan()
    peaks = trial._micro_batches(plan, 12, accumulates=True)
    assert list(peaks) == tried
    assert trial._extrapolated(peaks, 12) == 100 + 30 * 12


def test_a_single_window_needs_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    Steps(monkeypatch, 1.0)
    plan: Any = Plan()
    peaks = trial._micro_batches(plan, 1, accumulates=False)
    assert peaks == {1: 130}
    assert trial._extrapolated(peaks, 1) == 130


def test_memory_is_told_in_parts() -> None:
    needed = Memory(
        weights=2 * 10**9, gradients=10**9, optimizer=4 * 10**9, activations=10**8, saving=8 * 10**9, python=0,
        shared=False,
    )  # fmt: skip
    parts = "weights 2.0 GB, gradients 1.0 GB, optimizer 4.0 GB, activations 100.0 MB"
    assert str(needed) == f"7.1 GB ({parts}); and 8.0 GB of the machine's memory for saving"
