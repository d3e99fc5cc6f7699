"""The table of results: for the terminal and, between two comments, in benchmarks/RESULTS.md.

`python -m benchmarks.table` writes it, and the tables of studies, anew from benchmarks/results/.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import quantiles

from benchmarks import studies
from benchmarks.document import DOCUMENT, between, where
from benchmarks.goals import GOALS, verdict
from benchmarks.machine import processor_kind
from benchmarks.results import FOLDER, Results, Row, read

SUBJECTS = ("training", "book", "learning", "generation", "tokenizing", "loading", "saving", "startup")
"""The subjects, in the order of the table."""

BEGIN, END = "<!-- benchmark table -->", "<!-- end of the benchmark table -->"
_ENOUGH = 5
"""The minimum number of rounds for which quartiles are shown."""

_HEADER = ("", "against", "ours", "theirs", "result", "wall", "goal", "verdict")


def lines(results: Iterable[Results]) -> list[tuple[str, ...]]:
    """The cells of all rows, with the header."""
    return [_HEADER, *(_cells(row) for each in results for row in each.rows)]


def _cells(row: Row) -> tuple[str, ...]:
    goal = GOALS[row.goal] if row.goal else None
    bound = f"{'≥' if goal.at_least else '≤'} {shown(goal.bound, row.kind)}" if goal else ""
    theirs = _rate(row.theirs)
    return (
        row.what,
        row.against,
        f"{_rate(row.ours)} {row.unit}".strip() if row.ours is not None else "",
        theirs,
        shown(row.value, row.kind) + _spread(row),
        shown(row.wall, row.kind) if row.wall is not None else "",
        bound,
        verdict(row),
    )


def _spread(row: Row) -> str:
    """The quartiles over the rounds of a comparison, if there are enough rounds."""
    if row.kind not in ("times", "share") or len(row.rounds) < _ENOUGH:
        return ""
    low, _, high = quantiles(row.rounds, n=4, method="inclusive")
    return f" ({shown(low, row.kind)} to {shown(high, row.kind)})"


def _rate(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def shown(value: float, kind: str) -> str:
    """Formats a value by its kind."""
    if kind == "times":
        return f"{value:.2f}×"
    if kind == "share":
        return f"{value:.0%}" if value >= 0.1 else f"{100 * value:.2g}%"
    if kind == "seconds":
        return f"{value:.3f} s"
    if kind == "bytes":
        return f"{value / 1e6:,.0f} MB"
    return f"{value:.3f}" if kind == "nats" else f"{value:,.0f}"


def markdown(results: Iterable[Results]) -> str:
    """The Markdown between the two comments: for each subject and machine, the rows and what was skipped."""
    results = list(results)
    if not results:
        return "Nothing is measured yet: `make bench` fills this in.\n"
    parts = []
    for each in results:
        rows = [_HEADER, ("---", "---", *["---:"] * 5, "---"), *lines([each])[1:]]
        notes = list(dict.fromkeys(f"- {row.what}: {row.note}" for row in each.rows if row.note))
        notes += [f"- Not measured: {what} ({why})" for what, why in each.skipped.items()]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
        kind = processor_kind(each.machine)
        parts.append(f"### {each.subject.capitalize()}, {kind}\n\n`{each.command}`, {each.seconds:,.0f} s\n")
        parts += [where(each), f"{table}\n"]
        parts += ["\n".join(notes) + "\n"] if notes else []
    return "\n".join(parts)


def plain(results: Iterable[Results]) -> str:
    """The same rows in columns, for a terminal."""
    rows = lines(results)
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def every(folder: Path = FOLDER) -> list[Results]:
    """The results in `folder`, which has a folder for each kind of processor, by subject."""
    kinds = sorted(each for each in folder.glob("*/") if each.name != "quick")
    found = [results for kind in kinds for results in read(kind, SUBJECTS)]
    return sorted(found, key=lambda each: SUBJECTS.index(each.subject))


def write(document: Path = DOCUMENT, folder: Path = FOLDER) -> None:
    """Puts the table of the results in `folder` into the document."""
    text = document.read_text(encoding="utf-8")
    document.write_text(with_table(text, markdown(every(folder))), encoding="utf-8")


def with_table(text: str, table: str) -> str:
    """The document's text with `table` between its two comments."""
    return between(text, BEGIN, END, table)


if __name__ == "__main__":
    write()
    studies.write()
