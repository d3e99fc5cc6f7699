"""Renders a comparison as text, Markdown or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.comparison.checkpoints import Difference, DocumentChange
from pipeline.comparison.tasks import TaskDifference
from pipeline.core.console import aligned

CHECKPOINTS = "checkpoints"
RECIPES = "recipes"

QUESTION = {
    CHECKPOINTS: "Do these two checkpoints differ on this text?",
    RECIPES: "Do these two recipes differ?",
}
_MEANING = {
    CHECKPOINTS: "The interval covers the choice of the text, not that of the seed: another seed gives another "
    "checkpoint. To compare recipes, give several seeds of each (--against).",
    RECIPES: "The interval covers the choice of the seeds and of the text.",
}
_MOST_PARAMS = 20


@dataclass(frozen=True)
class Comparison:
    """The results of `pipeline compare`.

    Attributes:
        question: "checkpoints" or "recipes".
        unit: The unit of the losses.
        first, second: The runs of A and of B: name, step, weights and seed.
        sides: The differences on val and test.
        params: The params that differ, with the values of A and B.
        changes: The documents or blocks with the largest contributions to the difference; only for checkpoints.
        tasks: The differences in the numbers of tasks; only for checkpoints.
        metrics: The chosen metrics of A and B by text and name (for recipes: the means).
    """

    question: str
    unit: str
    first: list[dict[str, Any]]
    second: list[dict[str, Any]]
    sides: dict[str, Difference]
    params: dict[str, tuple[Any, Any]]
    changes: dict[str, list[DocumentChange]]
    tasks: list[TaskDifference] = field(default_factory=list)
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)


def verdict(found: Difference, unit: str) -> str:
    """The conclusion as a phrase, such as "B is better by 0.031 ± 0.008 nats per token"."""
    if not found.difference and not found.high - found.low:
        return "A and B are the same"
    half = (found.high - found.low) / 2
    digits = decimals(half)
    if not math.isfinite(half):
        return f"not enough data: one {found.what.removesuffix('s')}: {found.difference:+.4f} {unit}"
    if found.significant:
        better = "B" if found.difference < 0 else "A"
        return f"{better} is better by {abs(found.difference):.{digits}f} ± {half:.{digits}f} {unit}"
    return f"no significant difference: B − A is {found.difference:+.{digits}f} ± {half:.{digits}f} {unit}"


def decimals(half: float) -> int:
    """The number of decimals that shows two significant digits of ± `half`."""
    return min(max(1 - math.floor(math.log10(half)), 0), 12) if half and math.isfinite(half) else 6


def as_json(comparison: Comparison) -> str:
    """All results as JSON, for programs. Numbers that are not finite become null."""
    sides = {
        side: {"verdict": verdict(found, comparison.unit), **finite(asdict(found)), "differ": found.significant}
        for side, found in comparison.sides.items()
    }
    document = {
        "question": comparison.question,
        "unit": comparison.unit,
        "A": comparison.first,
        "B": comparison.second,
        **sides,
        "params": {key: {"A": first, "B": second} for key, (first, second) in comparison.params.items()},
        "changed_most": {side: [asdict(each) for each in changes] for side, changes in comparison.changes.items()},
        "metrics": {name: finite({"A": one, "B": two}) for name, (one, two) in comparison.metrics.items()},
        **({"tasks": [asdict(each) for each in comparison.tasks]} if comparison.tasks else {}),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str)


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with None for numbers that are not finite."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def as_text(comparison: Comparison) -> Iterator[str]:
    """Yields lines for a terminal."""
    for label, runs in (("A", comparison.first), ("B", comparison.second)):
        for run in runs:
            yield f"{label}  {described(run)}"
    yield ""
    yield QUESTION[comparison.question]
    for side, found in comparison.sides.items():
        yield f"  {side:<5} {verdict(found, comparison.unit)}"
        yield f"        {_numbers(found)}"
    yield f"  {meaning(comparison)}"
    for title, header, rows in (*task_tables(comparison), *tables(comparison)):
        yield ""
        yield title
        yield from table_lines([header, *rows])


def as_markdown(comparison: Comparison) -> Iterator[str]:
    """Yields Markdown lines."""
    yield f"**{QUESTION[comparison.question]}**"
    yield ""
    for label, runs in (("A", comparison.first), ("B", comparison.second)):
        yield f"- {label}: " + "; ".join(_cell(described(run)) for run in runs)
    yield ""
    rows = [
        [side, f"{found.first:.4f}", f"{found.second:.4f}", verdict(found, comparison.unit), p_value(found)]
        for side, found in comparison.sides.items()
    ]
    yield from grid([["", "A", "B", "", "p"], *rows])
    yield ""
    yield meaning(comparison).replace("--against", "`--against`")
    for title, header, cells in (*task_tables(comparison), *tables(comparison)):
        yield ""
        yield f"{title}:"
        yield ""
        yield from grid([header, *cells])


def meaning(comparison: Comparison) -> str:
    """What the interval covers, and what it does not."""
    if comparison.params and not any(found.difference for found in comparison.sides.values()):
        return (
            "The params differ, but the scores are equal: the params have no effect here, or `dvc repro` was "
            "not run."
        )
    return _MEANING[comparison.question]


def described(run: dict[str, Any]) -> str:
    """A run in words: its name, weights, step and seed."""
    seed = "" if run["seed"] is None else f", seed {run['seed']}"
    return f"{run['name']}: the {run['weights']} weights of step {run['step']:,}{seed}"


def _numbers(found: Difference) -> str:
    return f"A {found.first:.4f}  B {found.second:.4f}  p {p_value(found)}  over {found.units:,} {found.what}"


def p_value(found: Difference) -> str:
    """p as people write it."""
    return f"{found.p_value:.2g}" if found.p_value >= 0.0002 else "< 0.0002"


def task_tables(comparison: Comparison) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yields the table of tasks, if there are any, as title, header and rows."""
    if comparison.tasks:
        yield (
            "Tasks, over the items that both have (p: exact McNemar test)",
            ["", "A", "B", "B − A", "only A", "only B", "items", "p"],
            [
                [
                    each.number,
                    f"{each.first:.4f}",
                    f"{each.second:.4f}",
                    f"{each.second - each.first:+.4f}",
                    f"{each.only_first:,}",
                    f"{each.only_second:,}",
                    f"{each.items:,}",
                    f"{each.p_value:.2g}",
                ]
                for each in comparison.tasks
            ],
        )


def tables(comparison: Comparison) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yields tables as title, header and rows."""
    if comparison.metrics:
        pairs = comparison.metrics.items()
        rows = [[name, f"{one:.4f}", f"{two:.4f}", f"{two - one:+.4f}"] for name, (one, two) in pairs]
        yield "The chosen metrics, without a test", ["", "A", "B", "B − A"], rows
    params = list(comparison.params.items())
    if not params:
        yield "All params are equal", [], []
    else:
        rows = [[key, _value(first), _value(second)] for key, (first, second) in params[:_MOST_PARAMS]]
        left = len(params) - len(rows)
        yield "Params that differ" + (f" ({left} more with --json)" if left else ""), ["", "A", "B"], rows
    for side, changes in comparison.changes.items():
        if changes:
            what = comparison.sides[side].what
            yield (
                f"The {what} of {side} that contribute most to B − A",
                ["", "A", "B", "part"],
                [
                    [each.name, f"{each.first:.4f}", f"{each.second:.4f}", f"{each.contribution:+.5f}"]
                    for each in changes
                ],
            )


def _value(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def table_lines(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table's lines for a terminal, in narrow columns; rows without cells are left out."""
    rows = [[cell if len(cell) <= 60 else f"{cell[:59]}…" for cell in row] for row in rows if row]
    if rows:
        yield from aligned(rows, indent="  ")


def grid(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a Markdown table; the first row is the header."""
    for number, row in enumerate(row for row in rows if row):
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"
        if number == 0:
            yield "|" + "---|" * len(row)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
