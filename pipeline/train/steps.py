"""Tables of numbers: metrics/steps.tsv and others; beside the training checkpoints, what `runs --watch` shows."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.core.files import write_atomically, write_json
from pipeline.distributed.interrupt import LAUNCHER

STEPS = "steps.tsv"
LIVE = "live.json"


def table(rows: Sequence[dict[str, float]]) -> str:
    """Rows as tab-separated values, below a line of their columns; a missing number is an empty cell."""
    columns = _columns(rows)
    return "\t".join(columns) + "\n" + "".join(_line(row, columns) for row in rows)


def _columns(rows: Sequence[dict[str, float]]) -> list[str]:
    """The union of the rows' columns, in the order of the last row: the first one lacks the learning rate."""
    return list(dict.fromkeys(name for row in reversed(rows) for name in row)) or ["step"]


def _line(row: dict[str, float], columns: Sequence[str]) -> str:
    return "\t".join(repr(row[name]) if name in row else "" for name in columns) + "\n"


@dataclass(frozen=True)
class LiveStatus:
    """The content of live.json, which a run writes when it begins or resumes and after each evaluation.

    Attributes:
        process: The id of the process that trains; of several, that of rank 0.
        launcher: The id of the process that started the ranks; `process` if there is none.
        total_steps: The steps of the run.
        val_loss: The loss of the last evaluation; None before the first one.
    """

    process: int
    launcher: int
    total_steps: int
    val_loss: float | None


@dataclass
class LiveTable:
    """A table that grows by one line at a time; `pipeline runs --watch` reads it.

    Attributes:
        path: Its file, beside the run's checkpoints.
    """

    path: Path
    _columns: list[str] = field(default_factory=list, init=False)

    def update(self, rows: Sequence[dict[str, float]]) -> None:
        """Appends the last of `rows`. Rewrites the whole file in the first call, since a resumed run repeats steps,
        and if there is a new column."""
        row = rows[-1]
        if row.keys() <= set(self._columns):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row, self._columns))
        else:
            self._columns = _columns(rows)
            write_atomically(self.path, table(rows))

    def show(self, total_steps: int, history: Sequence[dict[str, float]]) -> None:
        """Writes live.json."""
        process = os.getpid()
        loss = history[-1]["val.loss"] if history else math.nan
        status = LiveStatus(
            process=process,
            launcher=int(os.environ.get(LAUNCHER, process)),
            total_steps=total_steps,
            val_loss=loss if math.isfinite(loss) else None,
        )
        write_json(self.path.with_name(LIVE), asdict(status))
