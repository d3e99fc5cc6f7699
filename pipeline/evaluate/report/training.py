"""What training wrote down on its way, read for the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError
from pipeline.core.files import read_json
from pipeline.evaluate.report.records import PROCESSOR_SECONDS, SPEED, Training
from pipeline.model.checkpoint import SAMPLES

_MEND = "run `python -m pipeline train`"


def read_training(metrics: Path, checkpoint: Path) -> Training:
    """Reads history.tsv, timing.tsv and performance.json of `metrics`, and the samples of `checkpoint`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    history = _with_times(_read_table(metrics / "history.tsv"), _read_table(metrics / "timing.tsv"))
    performance = _read_performance(metrics / "performance.json")
    return Training(history, performance, _read_samples(checkpoint / SAMPLES))


def _read_table(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter="\t")
            rows = [{name: float(value) for name, value in row.items() if value} for row in reader]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {_MEND}") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged ({error}): {_MEND}") from None
    if not rows or any("step" not in row for row in rows):
        raise CheckpointError(f"{path} is damaged (it needs rows, each with its step): {_MEND}")
    return rows


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


def _read_performance(path: Path) -> dict[str, float]:
    values = read_json(path, _MEND)
    needed = ("seconds", "tokens_per_sec")
    if not isinstance(values, dict) or not all(isinstance(values.get(name), int | float) for name in needed):
        raise CheckpointError(f"{path} is damaged (it needs the numbers {' and '.join(needed)}): {_MEND}")
    return values


def _read_samples(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
