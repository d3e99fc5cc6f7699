"""The numbers of single steps: metrics/steps.tsv, and the same lines beside the run's states while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.files import write_atomically

STEPS = "steps.tsv"


def columns_of(rows: Sequence[dict[str, float]]) -> list[str]:
    """Every column that any row has."""
    # Step 0 has no learning rate and no gradient yet, so the order is that of the last row.
    return list(dict.fromkeys(name for row in reversed(rows) for name in row))


def table(rows: Sequence[dict[str, float]], columns: Sequence[str]) -> str:
    """Rows as a table; a number that a row lacks is left empty."""
    return "".join([_line(columns), *(_line(_values(row, columns)) for row in rows)])


def _values(row: dict[str, float], columns: Sequence[str]) -> list[str]:
    return [repr(row[name]) if name in row else "" for name in columns]


def _line(values: Sequence[str]) -> str:
    return "\t".join(values) + "\n"


@dataclass
class LiveTable:
    """A table beside a run's states that grows by a line at a time; `pipeline runs --watch` reads it.

    Attributes:
        path: The file.
    """

    path: Path
    _columns: list[str] = field(default_factory=list, init=False)

    def update(self, rows: Sequence[dict[str, float]]) -> None:
        """Adds the last of all `rows`. The first time, and with a new column, writes all: a run that resumes may
        have written lines of steps that it does again."""
        row = rows[-1]
        if row.keys() <= set(self._columns):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(_values(row, self._columns)))
        else:
            self._columns = columns_of(rows)
            write_atomically(self.path, table(rows, self._columns))
