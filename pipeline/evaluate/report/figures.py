"""Writes the curves as PNG and SVG files, for READMEs, slides or `dvc plots`. Equal numbers give equal bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pipeline.core.files import write_atomically
from pipeline.evaluate.report.plots import Plot

COLOURS = {"val": "#0072b2", "train": "#d55e00", "test": "#009e73", "other": "#4a5563"}
"""Colours that are distinguishable with colour blindness (the first three by Okabe and Ito, 2008)."""
_SOFT = "#5b6675"


def write_figures(plots: list[Plot], folder: Path) -> None:
    """Writes NAME.png and NAME.svg for each plot."""
    from matplotlib import rc_context  # not pyplot, whose import takes half a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": _SOFT,
        "axes.labelcolor": _SOFT,
        "xtick.color": _SOFT,
        "ytick.color": _SOFT,
        "path.simplify": False,
    }
    for plot in plots:
        settings["svg.hashsalt"] = plot.name
        with rc_context(settings):
            figure = Figure(figsize=(6.4, 3.4))
            FigureCanvasAgg(figure)
            figure.subplots_adjust(
                left=0.15, right=0.97, bottom=0.165, top=0.9
            )  # fixed, because automatic layout needs another draw
            _draw(plot, figure.add_subplot())
            for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, metadata=metadata, facecolor="white", dpi=150)
                write_atomically(folder / f"{plot.name}.{kind}", buffer.getvalue())


def _draw(plot: Plot, axes: Any) -> None:
    for series in plot.series:
        if series.points:
            colour = COLOURS[series.colour]
            places, values = zip(*series.points, strict=True)
            marker = "." if len(places) <= 60 else ""
            axes.plot(places, values, label=series.label, color=colour, linewidth=1.8, marker=marker, markersize=6)
    for name, value in plot.references:
        axes.axhline(value, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"{name} {value:.3g}", (1, value), (-2, 3), ha="right", color=_SOFT, fontsize=9,
            xycoords=axes.get_yaxis_transform(), textcoords="offset points",
        )  # fmt: skip
    if plot.interval:
        place, value = plot.series[-1].points[-1]
        low, high = plot.interval
        axes.vlines(place, low, high, color=COLOURS[plot.series[-1].colour], linewidth=3, alpha=0.5)
    if plot.log_x:
        axes.set_xscale("log")
    if plot.log_y:
        axes.set_yscale("log")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.unit)
    axes.set_title(plot.title, loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.series) > 1:
        axes.legend(frameon=False)
