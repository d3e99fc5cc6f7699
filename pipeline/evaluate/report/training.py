"""What training wrote down on its way, read for the report."""

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
    """Reads what a checkpoint's folder keeps of its training; its manifest says that the files are whole.

    Raises:
        CheckpointError: they are not what training writes.
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
"""The files of metrics/ that hold curves."""


def parse_curves(history: str, timing: str, steps: str) -> dict[str, list[dict[str, float]]]:
    """The rows of a run's curves as `Training` has them: history, steps.

    Raises:
        ValueError, TypeError, KeyError, csv.Error: the texts are not what training writes.
    """
    return {"history": _with_times(_rows(history), _rows(timing)), "steps": _rows(steps)}


def _rows(table: str) -> list[dict[str, float]]:
    rows = csv.DictReader(io.StringIO(table, newline=""), delimiter="\t")
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def _with_times(history: list[dict[str, float]], timing: list[dict[str, float]]) -> list[dict[str, float]]:
    """Each evaluation with the processor seconds up to it, and the tokens a second since the one before.

    timing.tsv holds the mean speed since the beginning, in which a change would hardly show.
    """
    times = {row["step"]: row for row in timing}
    rows: list[dict[str, float]] = []
    before = (0.0, 0.0)
    for row in history:
        own = dict(row)
        time = times.get(row["step"], {})
        if PROCESSOR_SECONDS in time:
            own[PROCESSOR_SECONDS] = time[PROCESSOR_SECONDS]
        if "seconds" in time and "tokens" in row:
            tokens, seconds = row["tokens"] - before[0], time["seconds"] - before[1]
            if tokens > 0 and seconds > 0:
                own[SPEED] = tokens / seconds
            before = (row["tokens"], time["seconds"])
        rows.append(own)
    return rows


def _read_samples(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        samples: list[dict[str, Any]] = [json.loads(line) for line in file]
    if not all(isinstance(each["step"], int) and isinstance(each["text"], str) for each in samples):
        raise ValueError("a sample needs a step and a text")
    return samples
