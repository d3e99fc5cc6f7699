"""The report and what only commands need can be deleted: the evaluate stage works without them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY, TINY, Project

OPTIONAL = ("commands", "comparison", "authoring", "evaluate/report")


def test_evaluate_works_without_the_optional_rooms(trained_project: Project, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "pipeline"
    shutil.copytree(REPOSITORY / "pipeline", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for room in OPTIONAL:
        shutil.rmtree(copy / room)
    (copy / "evaluate" / "report" / "__pycache__").mkdir(parents=True)  # what deleting files in git leaves behind
    root = trained_project.root
    trained_project.succeed("evaluate")
    reports = root / "reports"
    outputs = [root / "metrics" / "evaluate.json", *reports.glob("*.tsv"), reports / "evaluation.json"]
    whole = {path: path.read_bytes() for path in outputs}
    assert (reports / "report.html").is_file()

    settings = [part for value in TINY for part in ("--set", value)]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "evaluate", *settings],
        cwd=root, env={**os.environ, "PYTHONPATH": str(copy.parent)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "metrics/evaluate.json, reports\n" in done.stdout
    assert not [path.name for path in reports.iterdir() if path.suffix in (".html", ".png", ".svg")]
    assert {path: path.read_bytes() for path in outputs} == whole
