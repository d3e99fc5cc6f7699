"""Reads the records of a training run for the report."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError
from pipeline.core.paths import METRICS
from pipeline.evaluate.report.records import PROCESSOR_SECONDS, SPEED, Training
from pipeline.model.checkpoint import SAMPLES


def read_training(checkpoint: Path) -> Training:
    """Reads the training records in the folder of a checkpoint, whose manifest verifies the files.

    Raises:
        CheckpointError: the files are not in the format that training writes.
    """
    metrics = checkpoint / METRICS
    try:
        return Training(
            **parse_curves(*((metrics / name).read_text(encoding="utf-8") for name in CURVES)),
            performance=json.loads((metrics / "performance.json").read_text(encoding="utf-8")),
            samples=_read_samples(checkpoint / SAMPLES),
        )
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        reason = f"{type(error).__name__}: {error}): train again"
        raise CheckpointError(f"{checkpoint}: its record of training is damaged ({reason}") from None


CURVES = ("history.tsv", "timing.tsv", "steps.tsv")
"""The files in metrics/ with curves."""


def parse_curves(history: str, timing: str, steps: str) -> dict[str, list[dict[str, float]]]:
    """Parses the curves of a run; returns the history and the steps for `Training`.

    Raises:
        ValueError, TypeError, KeyError, csv.Error: the texts are not in the format that training writes.
    """
    return {"history": _with_times(_rows(history), _rows(timing)), "steps": _rows(steps)}


def _rows(table: str) -> list[dict[str, float]]:
    rows = csv.DictReader(io.StringIO(table, newline=""), delimiter="\t")
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def _with_times(history: list[dict[str, float]], timing: list[dict[str, float]]) -> list[dict[str, float]]:
    """Adds to each evaluation the processor seconds so far, and the tokens per second since the previous one.

    timing.tsv only has the mean speed since the start, which hides changes.
    """
    times = {row["step"]: row for row in timing}
    rows: list[dict[str, float]] = []
    before = (0.0, 0.0)
    for row in history:
        evaluation = dict(row)
        time = times.get(row["step"], {})
        if PROCESSOR_SECONDS in time:
            evaluation[PROCESSOR_SECONDS] = time[PROCESSOR_SECONDS]
        if "seconds" in time and "tokens" in row:
            tokens, seconds = row["tokens"] - before[0], time["seconds"] - before[1]
            if tokens > 0 and seconds > 0:
                evaluation[SPEED] = tokens / seconds
            before = (row["tokens"], time["seconds"])
        rows.append(evaluation)
    return rows


def _read_samples(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        samples: list[dict[str, Any]] = [json.loads(line) for line in file]
    if not all(isinstance(each["step"], int) and isinstance(each["text"], str) for each in samples):
        raise ValueError("a sample needs a step and a text")
    return samples
