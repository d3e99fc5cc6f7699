"""Tables of numbers: metrics/steps.tsv and others, and a live copy of steps.tsv beside the training checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.files import write_atomically

STEPS = "steps.tsv"


def columns_of(rows: Sequence[dict[str, float]]) -> list[str]:
    """The union of the rows' columns, in the order of the last row: the first one lacks the learning rate."""
    return list(dict.fromkeys(name for row in reversed(rows) for name in row))


def table(rows: Sequence[dict[str, float]], columns: Sequence[str]) -> str:
    """Rows as tab-separated values; a missing number is an empty cell."""
    return "".join([_line(columns), *(_line(_values(row, columns)) for row in rows)])


def _values(row: dict[str, float], columns: Sequence[str]) -> list[str]:
    return [repr(row[name]) if name in row else "" for name in columns]


def _line(values: Sequence[str]) -> str:
    return "\t".join(values) + "\n"


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
                file.write(_line(_values(row, self._columns)))
        else:
            self._columns = columns_of(rows)
            write_atomically(self.path, table(rows, self._columns))
