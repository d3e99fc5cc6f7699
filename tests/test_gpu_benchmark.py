"""Every part of the GPU benchmark on the CPU with tiny shapes, and its time limit and table."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchmarks.document import DOCUMENT
from benchmarks.gpu import report
from benchmarks.gpu.part import FAILED, LEFT_OUT, MEASURED, PASSED, Found, Part, outcome
from benchmarks.gpu.plan import checks, measurements
from benchmarks.gpu.report import Report

PARTS = [*checks("cpu", quick=True), *measurements("cpu", quick=True, nanogpt=None)]
USUAL = (
    "check: document mask",
    "check: greedy tokens",
    "check: fp16",
    "bf16 matrix products",
    "124M, eager",
    "124M, evaluation, fp32",
    "124M, generation, 1",
)
"""How the names begin of the parts that are tried without --long: they compile nothing and take about a second."""


def case(part: Part) -> object:
    return pytest.param(part, id=part.name, marks=[] if part.name.startswith(USUAL) else [pytest.mark.long])


@pytest.mark.parametrize("part", [case(part) for part in PARTS])
def test_each_part_runs_on_a_cpu(part: Part) -> None:
    found = outcome(part.call, part.settings)
    assert found.result == (PASSED if part.name.startswith("check") else MEASURED), found.note
    if found.result == MEASURED:
        assert (found.tokens_per_second or found.flops or 0) > 0


def test_nanogpt_runs_on_a_cpu() -> None:
    if not (code := os.environ.get("NANOGPT")):
        pytest.skip("NANOGPT names no clone")
    settings = {"device": "cpu", "quick": True, "shape": "tiny", "compile": False, "code": code}
    assert outcome("training:nanogpt", settings).result == MEASURED


def test_the_most_important_parts_are_first_and_nothing_starts_after_the_end() -> None:
    names = [part.name for part in measurements("cuda", quick=False, nanogpt=Path("nanoGPT"))]
    assert names[1:3] == ["124M, whole model compiled", "124M, nanoGPT compiled"]
    assert all(name.startswith("350M") for name in names[-4:])
    assert PARTS[0].run(until=time.monotonic()).result == LEFT_OUT


def test_a_part_that_takes_too_long_is_stopped_and_one_that_fails_says_why(tmp_path: Path) -> None:
    stopped = Part("x", "training:gemm", {"device": "cpu", "quick": False}, limit=0.1).run()
    assert (stopped.result, "stopped after" in stopped.note) == (LEFT_OUT, True)
    failed = Part("x", "training:gemm", {"device": "nowhere", "quick": True}).run()
    assert failed.result == FAILED
    assert "nowhere" in failed.note


def made_report() -> Report:
    found = {
        "check: document mask": Found(FAILED, "3 tokens differ"),
        "bf16 matrix products": Found(MEASURED, flops=800e12),
        "124M, whole model compiled": Found(MEASURED, "batch 64", 500_000.0, 1e9, 30_000_000_000),
        "124M, nanoGPT compiled": Found(MEASURED, "batch 64", 400_000.0, 1e9, 40_000_000_000),
        "350M, eager": Found(LEFT_OUT, "no time was left"),
    }
    return Report("Made GPU 80GB", "python -m benchmarks.gpu", found, 500.0)


def test_a_report_is_read_as_it_was_written_and_becomes_one_table(tmp_path: Path) -> None:
    made = made_report()
    assert made.write(tmp_path).name == "gpu-made-gpu-80gb.json"
    assert report.every(tmp_path) == [made]
    text = made.markdown()
    assert "| 124M, whole model compiled | measured | 500,000 | 62.5% | 30.0 GB | 0 | batch 64 |" in text
    assert "62.5% of bf16 GEMM (goal: at least 60%): reached" in text
    assert "1.25× nanoGPT compiled (goal: at least 1.3×): missed" in text
    assert "no time was left" in text
    assert "3 tokens differ" in made.plain()


def test_the_documents_gpu_table_is_made_from_the_results_that_are_committed() -> None:
    text = DOCUMENT.read_text()
    assert report.with_table(text, report.every()) == text, "run `python -m benchmarks.gpu.report`"
