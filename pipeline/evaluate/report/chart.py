"""A plot laid out for the page: ticks, paths and read-outs, placed in percent of the area that they are drawn in.

Lines are stretched to whatever width there is, while text, dots and strokes keep their size: so a figure is as
readable on a phone as on a wide screen, and its colours follow the page's.
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
"""Room above and below the curves, and where labels of level lines stand there."""
_LINE, _LABEL = 42, 28
"""Characters of a read-out's line and of a label in it that fit beside the axis of a phone."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in percent from the left or the top, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Reference(Tick):
    """A level line. Its label stands on the side of it on which the curves do not end: above or `below`."""

    below: bool


@dataclass(frozen=True)
class Line:
    """A line: its label, colour and last value, its corners in a square of 1000 and its dots in percent."""

    label: str
    colour: str
    corners: str
    dots: list[Point]
    end: str


@dataclass(frozen=True)
class ReadOut:
    """A column that shows numbers when it is pointed at: its place and width, the text and the dots, in percent."""

    at: float
    left: float
    width: float
    rows: list[str]
    dots: list[tuple[str, float]]


@dataclass(frozen=True)
class Chart:
    """Everything the page needs to draw a plot; `summary` says in words what there is to see."""

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
    """Values → percent of an axis, and its ticks."""

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
    """Where everything of a plot goes. Values that are not finite, or not positive on a log scale, are left out."""
    series = [[point for point in each.points if _fits(point, plot)] for each in plot.series]
    points = [point for each in series for point in each]
    levels = [value for _, value in plot.references] + list(plot.interval or ())
    x = _scale([place for place, _ in points], plot.log_x, margin=0.0)
    margin = _WITH_LABELS if plot.references else _MARGIN
    y = _scale([value for _, value in points] + levels, plot.log_y, margin)

    ends = min((each[-1][1] for each in series if each), default=0.0)

    def place(point: Point) -> Point:
        return x(point[0]), round(100 - y(point[1]), 2)

    lines = [
        Line(
            each.label,
            each.colour,
            " ".join(f"{left * 10:.0f},{top * 10:.0f}" for left, top in map(place, own)),
            [place(point) for point in own] if len(own) <= _DOTS else [],
            number(own[-1][1]),
        )
        for each, own in zip(plot.series, series, strict=True)
        if own
    ]
    return Chart(
        plot=plot,
        x_ticks=[Tick(x(value), label) for value, label in labelled(x.ticks)],
        y_ticks=[Tick(round(100 - y(value), 2), label) for value, label in labelled(y.ticks)],
        lines=lines,
        references=[
            Reference(round(100 - y(value), 2), f"{name} {number(value)}", below=ends > value)
            for name, value in plot.references
        ],
        interval=(round(100 - y(plot.interval[1]), 2), round(100 - y(plot.interval[0]), 2))
        if plot.interval
        else None,
        readouts=_readouts(plot, series, place),
        summary=_summary(plot, series),
    )


def _fits(point: Point, plot: Plot) -> bool:
    place, value = point
    if not (math.isfinite(place) and math.isfinite(value)):
        return False
    return not (plot.log_x and place <= 0) and not (plot.log_y and value <= 0)


def _scale(values: Sequence[float], log: bool, margin: float) -> _Scale:
    """A scale that holds the values, and a margin on both sides, as a share of what they span."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if log:
        factor = math.exp(margin * (math.log(high) - math.log(low))) if high > low else 2.0
        below = max(low / factor, min(low, sys.float_info.min))  # not 0, which has no logarithm
        return _Scale(below, high * factor, log)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # as good as one value
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
    """Powers of ten, and what lies between them where there is room, or round values where there are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = -(-len(powers) // (_TICKS + 1))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers[::every] for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if 2 <= len(inside) <= _TICKS:
            return inside
    return nice_ticks(low, high) if len(inside) < 2 else inside


_UNITS = ((1e12, 1e12, " T"), (1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k"))
"""From which size on, in what, and its letter."""


def number(value: float, digits: int = 3, beside: float = 0.0) -> str:
    """A number as people read it: thousands as k, M, G or T, tiny ones with an exponent.

    Args:
        value: The number.
        digits: How many of them are shown at least, up to the zeros at the end.
        beside: The largest number that it stands beside: both are in the same unit.
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


def labelled(ticks: list[float]) -> list[tuple[float, str]]:
    """Each tick with its label, all in the same unit."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    return [(tick, "0" if abs(tick) < largest * 1e-9 else number(tick, beside=largest)) for tick in ticks]


def _readouts(plot: Plot, series: list[list[Point]], place: Callable[[Point], Point]) -> list[ReadOut]:
    """A column around each place that has a point, or around some of them, evenly spaced."""
    places = sorted({left for each in series for left, _ in each})
    every = max(1, -(-len(places) // _READOUTS))
    chosen = places[::-1][::every][::-1]
    lefts = [place((value, 1.0))[0] for value in chosen]
    borders = [0.0, *((one + other) / 2 for one, other in pairwise(lefts)), 100.0]
    readouts = []
    for index, (value, left) in enumerate(zip(chosen, lefts, strict=True)):
        own = [
            (line, plot.series[line].label, point)
            for line, points in enumerate(series)
            for point in points
            if point[0] == value
        ]
        many = len(plot.series) > 1
        texts = [f"{_cut(label)} {number(point[1], 4)}" if many else number(point[1], 4) for _, label, point in own]
        rows = [f"{number(value)} {plot.x_unit}", *texts]
        line = " · ".join(rows)
        readouts.append(
            ReadOut(
                at=left,
                left=round(borders[index], 2),
                width=round(borders[index + 1] - borders[index], 2),
                rows=[line] if len(line) <= _LINE else rows,
                dots=[(plot.series[line].colour, place(point)[1]) for line, _, point in own],
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
