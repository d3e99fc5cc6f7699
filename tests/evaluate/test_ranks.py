"""Evaluation by several processes: the files of one process, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, Project

SETTINGS = [
    "evaluate.batch_size=5",  # the last batch is smaller, and on two ranks one is left without a batch
    "evaluate.stride=0.5",
    "evaluate.groups=[text-0*, '*']",
    "evaluate.metrics.use=[accuracy, top5, calibration, choices]",
]
COMMAND = ["evaluate", *(part for value in SETTINGS for part in ("--set", value))]


def published(root: Path) -> dict[str, bytes]:
    """What an evaluation publishes, except for the report, whose curves show seconds."""
    names = ["evaluation.json", "documents.tsv", "blocks.tsv", "positions.tsv", "frequencies.tsv", "run.json"]
    return {
        path.name: path.read_bytes()
        for path in [root / "metrics/evaluate.json", *(root / "reports" / name for name in names)]
    }


@pytest.mark.parametrize(
    ("processes", "strategy"),
    [(2, "fsdp"), pytest.param(2, "ddp", marks=pytest.mark.long), pytest.param(3, "fsdp", marks=pytest.mark.long)],
)
def test_several_processes_publish_the_bytes_of_one(
    trained_project: Project, processes: int, strategy: str
) -> None:
    trained_project.succeed(*COMMAND)
    alone = published(trained_project.root)
    on_ranks = ("--set", f"runtime.processes={processes}", "--set", f"runtime.strategy={strategy}")
    result = trained_project.succeed(*COMMAND, *on_ranks)
    assert result.out.count("wrote    metrics/evaluate.json, reports/report.html") == 1
    assert published(trained_project.root) == alone


@pytest.mark.long
def test_torchrun_starts_the_ranks(trained_project: Project) -> None:
    trained_project.succeed(*COMMAND)
    alone = published(trained_project.root)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "pipeline",
    ]
    settings = [part for value in TINY for part in ("--set", value)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*torchrun, "evaluate", *settings, *COMMAND[1:]], check=True, env=environment, timeout=200)
    assert published(trained_project.root) == alone


def test_an_error_is_one_line(trained_project: Project) -> None:
    result = trained_project.run("evaluate", "--set", "evaluate.groups=[nothing]", "--set", "runtime.processes=2")
    assert result.code == 1
    assert result.err.startswith("error: rank 0 failed: evaluate.groups: 'nothing' matches no held-out document")
    assert result.err.count("\n") == 1
