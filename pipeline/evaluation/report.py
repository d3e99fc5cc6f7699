"""The report: one self-contained HTML page with curves, numbers, samples and params, and its figures as files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console import printable
from pipeline.files import write_atomically


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote.

    Attributes:
        prompt: What it was given.
        continuation: What it added.
        samplers: The samplers' names, in their order.
    """

    prompt: str
    continuation: str
    samplers: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything the report shows.

    Attributes:
        metrics: What metrics/evaluate.json holds.
        weights: "best" or "last".
        model: The architecture, and its number of parameters.
        history: The numbers of each evaluation during training.
        performance: What metrics/performance.json holds.
        samples: Texts through the samplers.
        samples_in_training: Texts that callbacks showed: step, callback, text.
        params: The params by section.
        versions: Packages and their versions.
    """

    metrics: dict[str, Any]
    weights: str
    model: dict[str, Any]
    history: list[dict[str, float]]
    performance: dict[str, float]
    samples: list[Sample]
    samples_in_training: list[dict[str, Any]]
    params: dict[str, dict[str, Any]]
    versions: dict[str, str]


@dataclass(frozen=True)
class Figure:
    """A curve over training steps: its title, the unit of its axis, and history's columns with their labels."""

    name: str
    title: str
    unit: str
    columns: dict[str, str]


FIGURES = (
    Figure("loss", "Loss", "nats a token", {"train.loss": "train", "val.loss": "validation"}),
    Figure("bits_per_byte", "Bits per byte", "bits a byte of text", {"val.bits_per_byte": "validation"}),
    Figure("learning_rate", "Learning rate", "rate", {"learning_rate": "learning rate"}),
    Figure("grad_norm", "Gradient norm", "norm before clipping", {"grad_norm": "gradient norm"}),
)
_COLOURS = ("#2563eb", "#dc6b19")


def write_report(report: Report, folder: Path) -> None:
    """Writes report.html and the figures (SVG inside the page, and as files for a README) into `folder`."""
    from jinja2 import Environment, FileSystemLoader

    figures = [(figure, _svg(figure, report.history, folder)) for figure in FIGURES]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = printable
    environment.filters["flat"] = _flat
    page = environment.get_template("report.html.j2").render(report=report, figures=figures)
    write_atomically(folder / "report.html", page)


def _svg(figure: Figure, history: list[dict[str, float]], folder: Path) -> str:
    """Draws a figure, writes NAME.svg and returns it without its XML header, for the page."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: Any = {
        "svg.hashsalt": figure.name,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
    }
    with pyplot.rc_context(settings):
        canvas, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
        for (column, label), colour in zip(figure.columns.items(), _COLOURS, strict=False):
            points = [(row["step"], row[column]) for row in history if column in row]
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, label=label, color=colour, linewidth=1.8, marker=".", markersize=5)
        axes.set_xlabel("step")
        axes.set_ylabel(figure.unit)
        axes.set_title(figure.title, loc="left", fontweight="bold")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(figure.columns) > 1 and axes.lines:
            axes.legend(frameon=False)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
        pyplot.close(canvas)
    svg = buffer.getvalue()
    write_atomically(folder / f"{figure.name}.svg", svg)
    return svg[svg.index("<svg") :]


def _flat(section: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A section's values with dotted names."""
    rows: list[tuple[str, Any]] = []
    for key, value in section.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return rows
