"""Renders a comparison as one HTML page with the curves of both sides. The page makes no network requests."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from pipeline.comparison.checkpoints import Difference
from pipeline.comparison.rendering import (
    QUESTION,
    Comparison,
    decimals,
    described,
    meaning,
    p_value,
    tables,
    task_tables,
    verdict,
)
from pipeline.comparison.runs import NATS
from pipeline.comparison.sources import RunSource
from pipeline.core.errors import DataError
from pipeline.evaluate.report.chart import lay_out
from pipeline.evaluate.report.page import render_page
from pipeline.evaluate.report.plots import (
    Axis,
    Plot,
    Point,
    Series,
    callback_columns,
    colour,
    fine_points,
    has_points,
    training_axes,
)
from pipeline.evaluate.report.records import SPEED, Training
from pipeline.evaluate.report.training import CURVES, parse_curves

_NATS = (
    ("val.loss", "Validation loss", "nats per token"),
    ("train.loss", "Training loss", "nats per token"),
)
_ANY_TOKENIZER = (
    ("val.bits_per_byte", "Bits per byte", "of validation text"),
    ("learning_rate", "Learning rate", "of the first group"),
    ("grad_norm", "Gradient norm", "before clipping"),
    (SPEED, "Throughput", "tokens per second"),
)


OF_CURVES = (
    "The curves show what training measured: val.loss on train.evaluation.windows windows of val, with the weights "
    "of that step. The losses in the tables are over all of the text, with the weights that were evaluated, and "
    "can differ by more than the recipes do."
)


def read_curves(source: RunSource) -> Training:
    """The metrics that a run recorded during training.

    Raises:
        PipelineError: a file is missing or damaged.
    """
    texts = [source.read(f"metrics/{name}") for name in CURVES]
    try:
        return Training(**parse_curves(*texts), performance={}, samples=[])
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        files = ", ".join(f"metrics/{name}" for name in CURVES)
        raise DataError(f"{source.name}: one of {files} is damaged ({error}): run `dvc repro` there") from None


def render(comparison: Comparison, first: Sequence[Training], second: Sequence[Training]) -> str:
    """The HTML page, without scripts, and with a policy that forbids network requests.

    Args:
        comparison: The comparison.
        first, second: The curves of the runs of A and of B; for several seeds, their mean is drawn.
    """
    labels = [_label("A", comparison.first), _label("B", comparison.second)]
    trainings = [_mean(first), _mean(second)]
    groups, sides = list(enumerate((comparison.first, comparison.second))), comparison.sides
    axes = training_axes([row for training in trainings for row in training.history])
    return render_page(
        Path(__file__).parent / "comparison.html.j2",
        labels=labels,
        runs=[(colour(index), f"{'AB'[index]}: {described(run)}") for index, group in groups for run in group],
        question=QUESTION[comparison.question],
        unit=comparison.unit,
        answers=[f"{side}: {verdict(found, comparison.unit)}" for side, found in sides.items()],
        losses={side: _numbers(found) for side, found in sides.items()},
        meaning=meaning(comparison),
        tasks=list(task_tables(comparison)),
        tables=list(tables(comparison)),
        of_curves=OF_CURVES,
        curves=[
            (axis, [lay_out(plot) for plot in _plots(labels, trainings, comparison.unit, axis)]) for axis in axes
        ],
    )


def _numbers(found: Difference) -> list[str]:
    """The losses of A and B, B − A with its interval, p, and the resampled units."""
    half = (found.high - found.low) / 2
    digits = decimals(half)
    difference = f"{found.difference:+.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")
    return [
        f"{found.first:.4f}",
        f"{found.second:.4f}",
        difference,
        p_value(found),
        f"{found.units:,} {found.what}",
    ]


def _label(side: str, runs: Sequence[dict[str, object]]) -> str:
    return f"{side}: {runs[0]['name']}" if len(runs) == 1 else f"{side}: mean of {len(runs)} seeds"


def _mean(trainings: Sequence[Training]) -> Training:
    """The mean of each number at the steps that all runs have."""
    if len(trainings) == 1:
        return trainings[0]
    history, steps = (
        _mean_rows([getattr(training, field) for training in trainings]) for field in ("history", "steps")
    )
    return Training(history, {}, [], steps)


def _mean_rows(tables: Sequence[list[dict[str, float]]]) -> list[dict[str, float]]:
    by_step = [{row["step"]: row for row in table} for table in tables]
    shared = [[table[step] for table in by_step] for step in by_step[0] if all(step in table for table in by_step)]
    return [
        {name: fmean(row[name] for row in rows) for name in rows[0] if all(name in row for row in rows)}
        for rows in shared
    ]


def _plots(labels: Sequence[str], trainings: Sequence[Training], unit: str, axis: Axis) -> list[Plot]:
    """A plot of each recorded number, and one of the second half of the first number, where curves are close.

    Losses in nats per token are left out if the tokens differ.
    """
    known = (_NATS + _ANY_TOKENIZER) if unit == NATS else _ANY_TOKENIZER
    returned = [name for names in callback_columns(trainings).values() for name in names]
    plots = []
    for name, title, about in (*known, *((name, name, "from a callback") for name in returned)):
        lines = [fine_points(training, axis, name) for training in trainings]
        plots.append(_plot(name, title, about, labels, lines, axis))
        if len(plots) == 1:
            plots.append(_plot(f"{name}.later", title, "the later half", labels, list(later_half(lines)), axis))
    return [plot for plot in plots if has_points(plot)]


def _plot(
    name: str, title: str, about: str, labels: Sequence[str], lines: Sequence[list[Point]], axis: Axis
) -> Plot:
    series = [
        Series(label, points, colour(index))
        for index, (label, points) in enumerate(zip(labels, lines, strict=True))
        if points
    ]
    return Plot(name, title, about, axis.label, axis.unit, series)


def later_half(lines: Sequence[list[Point]]) -> Iterator[list[Point]]:
    """The points in the second half of the range of the longest line."""
    last = max((line[-1][0] for line in lines if line), default=0.0)
    for line in lines:
        yield [point for point in line if point[0] >= last / 2]
