"""A sweep's answer as one HTML page, with its recipes' curves in one figure; it asks for no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.comparison.comparison_page import OF_CURVES, later_half
from pipeline.comparison.sweep import Curve, Sweep, labels, legend
from pipeline.comparison.sweep_rendering import answer, left_out, notes, table
from pipeline.evaluate.report.chart import lay_out, number
from pipeline.evaluate.report.page import render_page
from pipeline.evaluate.report.plots import Plot, Series, colour


@dataclass(frozen=True)
class Strip:
    """The seeds' losses of a recipe on a line, and their mean, in percent from the left."""

    dots: list[float]
    mean: float


def render(sweep: Sweep) -> str:
    """The page as one HTML text: no script, and a policy that lets it ask for nothing."""
    here = Path(__file__).parent
    head, *rows = table(sweep)
    low, high, strips = _strips(sweep)
    return render_page(
        here / "sweep.html.j2",
        here / "sweep.css",
        sweep=sweep,
        title=sweep.keys[0] if len(sweep.keys) == 1 else f"Recipes by {len(sweep.keys)} params",
        answer=[_plain(line) for line in answer(sweep)],
        legend=legend(sweep),
        notes=list(notes(sweep)),
        left_out=[_plain(phrase) for phrase in left_out(sweep)],
        head=head,
        shown=head.index("p") + 1,
        rows=[(colour(place), *each) for place, each in enumerate(zip(rows, strips, strict=True))],
        of_curves=OF_CURVES,
        ends=(number(low, 4), number(high, 4)),
        charts=[lay_out(plot) for plot in _plots(sweep)],
    )


def _plain(text: str) -> str:
    """Text for people who read a page: without the backticks around commands."""
    return text.replace("`", "")


def _strips(sweep: Sweep) -> tuple[float, float, list[Strip]]:
    """The limits of the axis of losses, and the positions of each recipe's losses on it, in percent."""
    losses = [recipe.losses[sweep.sides[0]] for recipe in sweep.recipes]
    everything = [loss for values in losses for loss in values]
    low, high = min(everything), max(everything)
    width = high - low or 1.0

    def position(value: float) -> float:
        return round(100 * (value - low) / width, 2)

    strips = [
        Strip([position(loss) for loss in values], position(math.fsum(values) / len(values))) for values in losses
    ]
    return low, high, strips


def _plots(sweep: Sweep) -> list[Plot]:
    """Plots of the mean val.loss by step, for the whole training and for its second half."""
    curves = [recipe.curve for recipe in sweep.recipes]
    plots = [
        _plot("loss", "nats per token, mean of the seeds", sweep, curves),
        _plot("later", "the later half", sweep, list(later_half(curves))),
    ]
    return [plot for plot in plots if any(len(series.points) > 1 for series in plot.series)]


def _plot(name: str, about: str, sweep: Sweep, curves: Sequence[Curve]) -> Plot:
    series = [
        Series(label, curve, colour(place))
        for place, (label, curve) in enumerate(zip(labels(sweep), curves, strict=True))
    ]
    return Plot(name, "Validation loss", about, "steps", "steps", series)
