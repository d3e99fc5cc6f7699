"""The fuzzer finds what is planted, a fault of each sort, and tries broken params on the commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.faults
def test_planted_faults_are_found_and_broken_params_cause_none() -> None:
    options = ["--only", "planted", "--only", "params", "--cases", "30", "--limit", "2", "--growth", "0.3"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *options],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"
    ]
    table = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows}
    assert done.returncode == 1, done.stderr
    assert {
        sort: table["planted"][sort] for sort in ("traceback", "hang", "growth", "silent", "outputs")
    } == dict.fromkeys(("traceback", "hang", "growth", "silent", "outputs"), "1")
    assert (table["params"]["cases"], table["params"]["with faults"]) == ("25", "0"), done.stdout
