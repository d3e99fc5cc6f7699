"""Which curves the report has, as plain data: what draws them knows neither metrics nor history."""

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
"""The columns of history.tsv and steps.tsv that are no callback's, and those that the report adds."""
_COLOURS = 8


@dataclass(frozen=True)
class Series:
    """One line: its label, its points from left to right, and its colour's name, which means the same anywhere."""

    label: str
    points: list[Point]
    colour: str = "other"


@dataclass(frozen=True)
class Plot:
    """A figure with lines.

    Attributes:
        name: The file's name.
        title: What it shows.
        unit: Of the y axis.
        x_label: What the x axis is.
        x_unit: What stands behind a number of it.
        series: The lines.
        references: Labelled values to compare with, as level lines.
        interval: The 95% interval of the last line's end.
        log_x, log_y: Whether an axis counts factors.
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
    """What curves of training are drawn against: history's column, its label and unit, and what to divide it by."""

    name: str
    column: str
    label: str
    unit: str
    divisor: float = 1.0


def training_axes(history: list[dict[str, float]]) -> list[Axis]:
    """The axes for which there are numbers: steps, tokens, and processor time in a unit that suits it."""
    longest = max((row.get(PROCESSOR_SECONDS, 0.0) for row in history), default=0.0)
    unit, divisor = ("seconds", 1) if longest < 180 else ("minutes", 60) if longest < 10_800 else ("hours", 3600)
    axes = [
        Axis("steps", "step", "steps", "steps"),
        Axis("tokens", "tokens", "tokens", "tokens"),
        Axis("time", PROCESSOR_SECONDS, f"processor time, {unit}", unit, divisor),
    ]
    return [axis for axis in axes if any(row.get(axis.column, 0.0) > 0 for row in history)] or axes[:1]


def training_plots(report: Report, axis: Axis) -> list[Plot]:
    """The curves of training against an axis; those without a number are left out."""
    history = report.training.history
    val: dict[str, Any] = report.metrics.get("val", {})

    def line(label: str, column: str, colour: str = "other") -> Series:
        return Series(label, _points(history, axis, column), colour)

    def fine(label: str, column: str) -> Series:
        return Series(label, fine_points(report.training, axis, column))

    evaluated = report.step == history[-1]["step"]  # else the line ends with other weights
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
    """What the loss optimised at single steps, if that is known."""
    points = _points(training.steps, axis, "train.objective")
    plot = Plot("objective", "Objective", "of single steps, nats per token", axis.label, axis.unit,
                [Series("objective", points, "train")])  # fmt: skip
    return [plot] if points else []


def callback_plots(training: Training, axis: Axis) -> list[Plot]:
    """The numbers that callbacks returned, at single steps or at evaluations. Those whose names are alike up to the
    last dot, such as weights.attention and weights.mlp, share a plot."""
    plots = []
    for group, columns in callback_columns([training]).items():
        lines = [(column.removeprefix(f"{group}."), fine_points(training, axis, column)) for column in columns]
        drawn = [(label, points) for label, points in lines if points]
        colours = map(colour, range(len(drawn))) if len(drawn) > 1 else ["other"]
        series = [Series(label, points, own) for own, (label, points) in zip(colours, drawn, strict=False)]
        plots.append(Plot(group, group, "from a callback", axis.label, axis.unit, series))
    return [plot for plot in plots if has_points(plot)]


def callback_columns(trainings: Sequence[Training]) -> dict[str, list[str]]:
    """The names of the numbers that callbacks returned, by what they share up to the last dot."""
    rows = (row for training in trainings for row in (*training.history, *training.steps))
    groups: dict[str, list[str]] = {}
    for column in dict.fromkeys(name for row in rows for name in row if name not in _OWN):
        groups.setdefault(column.rpartition(".")[0] or column, []).append(column)
    return {columns[0] if len(columns) == 1 else group: columns for group, columns in groups.items()}


def colour(place: int) -> str:
    """The class of the line at a place among others; beyond eight, the colours begin again, dashed."""
    return f"r{place % _COLOURS}" + " dashed" * (place >= _COLOURS)


def fine_points(training: Training, axis: Axis, column: str) -> list[Point]:
    """A column of single steps, or, where these do not have it, of the evaluations."""
    return _points(training.steps, axis, column) or _points(training.history, axis, column)


def _points(rows: list[dict[str, float]], axis: Axis, column: str) -> list[Point]:
    """A column against an axis: every row that has both, or of very many some, evenly spaced."""
    points = [(row[axis.column] / axis.divisor, row[column]) for row in rows if {column, axis.column} <= row.keys()]
    return points[:: -(-len(points) // _POINTS) or 1]


def position_plot(breakdowns: dict[str, Breakdown]) -> Plot:
    """The loss by position in the context, of both sides; positions are put together so that the lines are calm."""
    series = [Series(name, _pooled(side.positions), name) for name, side in breakdowns.items()]
    return Plot(
        "positions", "Loss by position", "nats per token", "tokens before it, log scale", "tokens before", series,
        log_x=True,
    )  # fmt: skip


def _pooled(positions: list[PositionLoss]) -> list[Point]:
    """Mean losses over runs of positions, each about a third longer than the one before."""
    points: list[Point] = []
    start = 0
    while start < len(positions):
        run = positions[start : start + max(1, start // 3)]
        tokens = sum(row.tokens for row in run)
        known = math.exp(sum(math.log(row.position + 1) for row in run) / len(run))  # tokens that were seen there
        points.append((known, sum(row.tokens * row.nats for row in run) / tokens))
        start += len(run)
    return points


def has_points(plot: Plot) -> bool:
    """Whether there is anything to draw."""
    return any(len(series.points) for series in plot.series)
