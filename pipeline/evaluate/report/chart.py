"""Lays out a plot for the page: ticks, lines and tooltips, with positions in percent of the plot area.

Lines are stretched to the available width; text, dots and strokes keep their size. So a figure is readable on a
phone and on a wide screen, and it uses the colours of the page.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.evaluate.report.plots import Plot, Point

_TICKS = 5
_READOUTS = 60
_DOTS = 30
_MARGIN, _WITH_LABELS = 0.06, 0.12
"""The margin above and below the curves, where labels of reference lines are placed."""
_LINE, _LABEL = 42, 28
"""The maximum number of characters of a tooltip's line and of a label in it, on a phone."""


@dataclass(frozen=True)
class Tick:
    """A tick: its position in percent from the left or the top, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Reference(Tick):
    """A horizontal reference line. Its label is above or `below` it, on the side where the curves do not end."""

    below: bool


@dataclass(frozen=True)
class Line:
    """A line: label, colour and last value, its points in a square of 1000 × 1000, and its dots in percent."""

    label: str
    colour: str
    corners: str
    dots: list[Point]
    end: str


@dataclass(frozen=True)
class ReadOut:
    """A tooltip for a column of the plot: position and width of the column, text, and dots, in percent."""

    at: float
    left: float
    width: float
    rows: list[str]
    dots: list[tuple[str, float]]


@dataclass(frozen=True)
class Chart:
    """All that the template needs to draw a plot. `summary` is a text description for screen readers."""

    plot: Plot
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    references: list[Reference]
    interval: tuple[float, float] | None
    readouts: list[ReadOut]
    summary: str


@dataclass(frozen=True)
class _Scale:
    """Maps values to percent of an axis; has the ticks of the axis."""

    low: float
    high: float
    log: bool

    def __call__(self, value: float) -> float:
        forward: Callable[[float], float] = math.log if self.log else float
        low, high = forward(self.low), forward(self.high)
        return round(100 * (forward(value) - low) / (high - low), 2)

    @property
    def ticks(self) -> list[float]:
        values = _log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high)
        slack = (self.high - self.low) * 1e-9
        return [value for value in values if self.low - slack <= value <= self.high + slack]


def lay_out(plot: Plot) -> Chart:
    """Lays out a plot. Values that are not finite, or not positive on a log scale, are left out."""
    series = [[point for point in each.points if _fits(point, plot)] for each in plot.series]
    points = [point for each in series for point in each]
    levels = [value for _, value in plot.references] + list(plot.interval or ())
    x = _scale([position for position, _ in points], plot.log_x, margin=0.0)
    margin = _WITH_LABELS if plot.references else _MARGIN
    y = _scale([value for _, value in points] + levels, plot.log_y, margin)

    ends = min((each[-1][1] for each in series if each), default=0.0)

    def position(point: Point) -> Point:
        return x(point[0]), round(100 - y(point[1]), 2)

    lines = [
        Line(
            each.label,
            each.colour,
            " ".join(f"{left * 10:.0f},{top * 10:.0f}" for left, top in map(position, points)),
            [position(point) for point in points] if len(points) <= _DOTS else [],
            number(points[-1][1]),
        )
        for each, points in zip(plot.series, series, strict=True)
        if points
    ]
    return Chart(
        plot=plot,
        x_ticks=[Tick(x(value), label) for value, label in tick_labels(x.ticks)],
        y_ticks=[Tick(round(100 - y(value), 2), label) for value, label in tick_labels(y.ticks)],
        lines=lines,
        references=[
            Reference(round(100 - y(value), 2), f"{name} {number(value)}", below=ends > value)
            for name, value in plot.references
        ],
        interval=(round(100 - y(plot.interval[1]), 2), round(100 - y(plot.interval[0]), 2))
        if plot.interval
        else None,
        readouts=_readouts(plot, series, position),
        summary=_summary(plot, series),
    )


def _fits(point: Point, plot: Plot) -> bool:
    position, value = point
    if not (math.isfinite(position) and math.isfinite(value)):
        return False
    return not (plot.log_x and position <= 0) and not (plot.log_y and value <= 0)


def _scale(values: Sequence[float], log: bool, margin: float) -> _Scale:
    """A scale that covers the values with a margin on both sides, as a share of their range."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if log:
        factor = math.exp(margin * (math.log(high) - math.log(low))) if high > low else 2.0
        below = max(low / factor, min(low, sys.float_info.min))  # not 0: log 0 is undefined
        return _Scale(below, high * factor, log)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # practically a single value
        half = abs(high) * 0.5 or 1.0
        return _Scale(low - half, high + half, log)
    room = (high - low) * margin
    below = 0.0 if low >= 0 and low - room < 0 else low - room
    return _Scale(below, high + room, log)


def nice_ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """About `count` round values from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with values between them if there is room, or round values if there are too few powers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = -(-len(powers) // (_TICKS + 1))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers[::every] for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if 2 <= len(inside) <= _TICKS:
            return inside
    return nice_ticks(low, high) if len(inside) < 2 else inside


_UNITS = ((1e12, 1e12, " T"), (1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k"))
"""The units of numbers: minimum value, divisor, and letter."""


def number(value: float, digits: int = 3, beside: float = 0.0) -> str:
    """Formats a number for people: large ones with k, M, G or T, tiny ones with an exponent.

    Args:
        value: The number.
        digits: The number of significant digits; trailing zeros are dropped.
        beside: The largest of the numbers it is shown with, to use the same unit.
    """
    size = max(abs(value), abs(beside))
    for least, unit, letter in _UNITS:
        if size >= least:
            scaled = value / unit
            return _plain(scaled, max(digits - len(str(int(abs(scaled)))), 0)) + letter
    if size >= 1000:
        return f"{value:,.0f}"
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    whole = len(str(int(size))) if size >= 1 else 0
    return _plain(value, max(digits + 1 - whole, 0))


def _plain(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def tick_labels(ticks: list[float]) -> list[tuple[float, str]]:
    """The ticks with labels, all in the same unit."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    return [(tick, "0" if abs(tick) < largest * 1e-9 else number(tick, beside=largest)) for tick in ticks]


def _readouts(plot: Plot, series: list[list[Point]], position: Callable[[Point], Point]) -> list[ReadOut]:
    """Tooltips at each x value that has a point, or at some of them, evenly spaced."""
    places = sorted({left for each in series for left, _ in each})
    every = max(1, -(-len(places) // _READOUTS))
    chosen = places[::-1][::every][::-1]
    lefts = [position((value, 1.0))[0] for value in chosen]
    borders = [0.0, *((one + other) / 2 for one, other in pairwise(lefts)), 100.0]
    readouts = []
    for index, (value, left) in enumerate(zip(chosen, lefts, strict=True)):
        nearest = [
            (line, plot.series[line].label, point)
            for line, points in enumerate(series)
            for point in points
            if point[0] == value
        ]
        many = len(plot.series) > 1
        texts = [
            f"{_cut(label)} {number(point[1], 4)}" if many else number(point[1], 4) for _, label, point in nearest
        ]
        rows = [f"{number(value)} {plot.x_unit}", *texts]
        line = " · ".join(rows)
        readouts.append(
            ReadOut(
                at=left,
                left=round(borders[index], 2),
                width=round(borders[index + 1] - borders[index], 2),
                rows=[line] if len(line) <= _LINE else rows,
                dots=[(plot.series[line].colour, position(point)[1]) for line, _, point in nearest],
            )
        )
    return readouts


def _cut(label: str) -> str:
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def _summary(plot: Plot, series: list[list[Point]]) -> str:
    parts = []
    for each, points in zip(plot.series, series, strict=True):
        if points:
            lowest = min(points, key=lambda point: point[1])
            parts.append(
                f"{each.label} from {number(points[0][1])} to {number(points[-1][1])}, lowest {number(lowest[1])} "
                f"at {number(lowest[0])}"
            )
    parts += [f"{name} {number(value)}" for name, value in plot.references]
    return f"{plot.title}, {plot.unit}, against {plot.x_label}: " + "; ".join(parts)
