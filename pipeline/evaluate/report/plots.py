"""The curves of the report as plain data, for `chart` and `figures`, which know nothing about metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluate.breakdown import Breakdown, PositionLoss
from pipeline.evaluate.report.records import PROCESSOR_SECONDS, SPEED, Report, Training

Point = tuple[float, float]
_POINTS = 500
_OWN = {"step", "tokens", "epoch", "train.objective", "learning_rate", "grad_norm", PROCESSOR_SECONDS, SPEED}
_MEASURED = ("loss", "perplexity", "bits_per_byte", "accuracy")
_OWN |= {f"{side}.{name}" for side in ("train", "val") for name in _MEASURED}
"""The columns of history.tsv and steps.tsv that are not from callbacks, and those that the report adds."""
_COLOURS = 8


@dataclass(frozen=True)
class Series:
    """A line: its label, its points from left to right, and the name of its colour, with a fixed meaning."""

    label: str
    points: list[Point]
    colour: str = "other"


@dataclass(frozen=True)
class Plot:
    """A figure with lines.

    Attributes:
        name: The name of the file.
        title: The title.
        unit: The unit of the y axis.
        x_label: The label of the x axis.
        x_unit: The unit after a number of the x axis.
        series: The lines.
        references: Labelled values to compare with, as horizontal lines.
        interval: The 95% interval of the last point of the last line.
        log_x, log_y: Whether the axis is logarithmic.
    """

    name: str
    title: str
    unit: str
    x_label: str
    x_unit: str
    series: list[Series]
    references: list[tuple[str, float]] = field(default_factory=list)
    interval: tuple[float, float] | None = None
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Axis:
    """An x axis for training curves: its column of the history, label, unit, and divisor."""

    name: str
    column: str
    label: str
    unit: str
    divisor: float = 1.0


def training_axes(history: list[dict[str, float]]) -> list[Axis]:
    """The axes for which there are numbers: steps, tokens, and processor time in a suitable unit."""
    longest = max((row.get(PROCESSOR_SECONDS, 0.0) for row in history), default=0.0)
    unit, divisor = ("seconds", 1) if longest < 180 else ("minutes", 60) if longest < 10_800 else ("hours", 3600)
    axes = [
        Axis("steps", "step", "steps", "steps"),
        Axis("tokens", "tokens", "tokens", "tokens"),
        Axis("time", PROCESSOR_SECONDS, f"processor time, {unit}", unit, divisor),
    ]
    return [axis for axis in axes if any(row.get(axis.column, 0.0) > 0 for row in history)] or axes[:1]


def training_plots(report: Report, axis: Axis) -> list[Plot]:
    """The training curves against an axis. Curves without numbers are left out."""
    history = report.training.history
    val: dict[str, Any] = report.metrics.get("val", {})

    def line(label: str, column: str, colour: str = "other") -> Series:
        return Series(label, _points(history, axis, column), colour)

    def fine(label: str, column: str) -> Series:
        return Series(label, fine_points(report.training, axis, column))

    evaluated = report.step == history[-1]["step"]  # otherwise the last point is of other weights
    ends = val.get("interval", {}).get("perplexity") if evaluated else None
    limits = (ends["low"], ends["high"]) if ends else None
    plots = [
        Plot("loss", "Loss", "nats per token", axis.label, axis.unit,
             [line("validation", "val.loss", "val"), line("train", "train.loss", "train")]),
        Plot("bits_per_byte", "Bits per byte", "bits per byte of text", axis.label, axis.unit,
             [line("validation", "val.bits_per_byte", "val")], references=list(val.get("baselines", {}).items())),
        Plot("perplexity", "Perplexity", "log scale", axis.label, axis.unit,
             [line("validation", "val.perplexity", "val")], interval=limits, log_y=True),
        Plot("learning_rate", "Learning rate", "of the first group", axis.label, axis.unit,
             [fine("learning rate", "learning_rate")]),
        Plot("grad_norm", "Gradient norm", "before clipping", axis.label, axis.unit,
             [fine("gradient norm", "grad_norm")]),
        Plot("throughput", "Throughput", "tokens per second", axis.label, axis.unit,
             [line("tokens per second", SPEED)]),
    ]  # fmt: skip
    return [plot for plot in plots if has_points(plot)]


def objective_plots(training: Training, axis: Axis) -> list[Plot]:
    """The training objective at single steps, if it was recorded."""
    points = _points(training.steps, axis, "train.objective")
    plot = Plot("objective", "Objective", "of single steps, nats per token", axis.label, axis.unit,
                [Series("objective", points, "train")])  # fmt: skip
    return [plot] if points else []


def callback_plots(training: Training, axis: Axis) -> list[Plot]:
    """The numbers from callbacks, at single steps or evaluations. Names that are equal up to the last dot, such as
    weights.attention and weights.mlp, share a plot."""
    plots = []
    for group, columns in callback_columns([training]).items():
        lines = [(column.removeprefix(f"{group}."), fine_points(training, axis, column)) for column in columns]
        drawn = [(label, points) for label, points in lines if points]
        colours = map(colour, range(len(drawn))) if len(drawn) > 1 else ["other"]
        series = [
            Series(label, points, colour_name) for colour_name, (label, points) in zip(colours, drawn, strict=False)
        ]
        plots.append(Plot(group, group, "from a callback", axis.label, axis.unit, series))
    return [plot for plot in plots if has_points(plot)]


def callback_columns(trainings: Sequence[Training]) -> dict[str, list[str]]:
    """The names of the numbers from callbacks, grouped by the part before the last dot."""
    rows = (row for training in trainings for row in (*training.history, *training.steps))
    groups: dict[str, list[str]] = {}
    for column in dict.fromkeys(name for row in rows for name in row if name not in _OWN):
        groups.setdefault(column.rpartition(".")[0] or column, []).append(column)
    return {columns[0] if len(columns) == 1 else group: columns for group, columns in groups.items()}


def colour(index: int) -> str:
    """The CSS class of the line with this index. After eight lines, the colours repeat with dashes."""
    return f"r{index % _COLOURS}" + " dashed" * (index >= _COLOURS)


def fine_points(training: Training, axis: Axis, column: str) -> list[Point]:
    """The points of a column of single steps, or of the evaluations if the steps do not have it."""
    return _points(training.steps, axis, column) or _points(training.history, axis, column)


def _points(rows: list[dict[str, float]], axis: Axis, column: str) -> list[Point]:
    """The points of a column against an axis. Of very many rows, some are used, evenly spaced."""
    points = [(row[axis.column] / axis.divisor, row[column]) for row in rows if {column, axis.column} <= row.keys()]
    return points[:: -(-len(points) // _POINTS) or 1]


def position_plot(breakdowns: dict[str, Breakdown]) -> Plot:
    """The loss by position in the context, for both texts. Positions are pooled to smooth the lines."""
    series = [Series(name, _pooled(side.positions), name) for name, side in breakdowns.items()]
    return Plot(
        "positions", "Loss by position", "nats per token", "tokens before it, log scale", "tokens before", series,
        log_x=True,
    )  # fmt: skip


def _pooled(positions: list[PositionLoss]) -> list[Point]:
    """Mean losses over ranges of positions, each about a third longer than the previous one."""
    points: list[Point] = []
    start = 0
    while start < len(positions):
        run = positions[start : start + max(1, start // 3)]
        tokens = sum(row.tokens for row in run)
        known = math.exp(
            sum(math.log(row.position + 1) for row in run) / len(run)
        )  # geometric mean of the number of tokens seen
        points.append((known, sum(row.tokens * row.nats for row in run) / tokens))
        start += len(run)
    return points


def has_points(plot: Plot) -> bool:
    """Whether any line has points."""
    return any(len(series.points) for series in plot.series)
