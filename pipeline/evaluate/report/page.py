"""The page: the report's records, put in the order in which they are read, and handed to the template."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import printable
from pipeline.core.files import write_atomically
from pipeline.core.params_diff import flatten
from pipeline.evaluate.bootstrap import units
from pipeline.evaluate.breakdown import Breakdown
from pipeline.evaluate.report.chart import Chart, lay_out, number
from pipeline.evaluate.report.figures import write_figures
from pipeline.evaluate.report.heads import columns, head_pictures, spread
from pipeline.evaluate.report.plots import (
    Axis,
    Plot,
    callback_plots,
    has_points,
    objective_plots,
    position_plot,
    training_axes,
    training_plots,
)
from pipeline.evaluate.report.records import Report

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

REPORT = Path(__file__).parent
LEVELS = (0.25, 1.0, 2.0, 3.5, 5.0, 7.0, 9.0)
"""Nats at which the colour of a token changes."""
_DOCUMENTS = 8
_ROWS = 60
CARDS = (
    ("bits_per_byte", "bits per byte"),
    ("perplexity", "perplexity"),
    ("loss", "loss, nats per token"),
    ("accuracy", "top-1 accuracy"),
)


def write_page(report: Report, folder: Path) -> None:
    """Writes report.html, and its curves as PNG and SVG files, into `folder`."""
    plots = training_plots(report, training_axes(report.training.history)[0])
    positions = position_plot(report.breakdowns)
    write_figures(plots + ([positions] if has_points(positions) else []), folder)
    write_atomically(folder / "report.html", render(report))


def render(report: Report) -> str:
    """The page as one HTML text: no script, and a policy that lets it ask for nothing."""
    positions = position_plot(report.breakdowns)
    return render_page(
        REPORT / "page.html.j2",
        report=report,
        sides=[side for side in ("val", "test") if side in report.metrics],
        cards=CARDS,
        curves=_curves(report),
        positions=lay_out(positions) if has_points(positions) else None,
        bars=_baseline_bars(report),
        drawn=_drawn(report),
        end=next((sample.end for group in report.samples for sample in group if sample.end), ""),
        levels=LEVELS,
        unscored=any(token.nats is None for excerpt in report.excerpts for token in excerpt.tokens),
        evaluations=_some(report.training.history),
        timeline=_some(_timeline(report)),
        documents={name: _documents(side) for name, side in report.breakdowns.items() if side.documents},
        frequencies={name: _frequencies(side) for name, side in report.breakdowns.items() if side.frequencies},
        head_columns=columns(len(report.attention.heads)) if report.attention else 0,
        heads=head_pictures(report.attention) if report.attention else [],
        params={name: flatten(section).items() for name, section in report.params.items()},
    )


def render_page(template: Path, *styles: Path, **values: Any) -> str:
    """A page that extends base.html.j2, as one HTML text with its style in it.

    Args:
        template: Its file; its folder may hold more that it includes.
        styles: Style sheets beside page.css.
        values: What the template shows.
    """
    from markupsafe import Markup

    sheets = (path.read_text(encoding="utf-8").strip() for path in (REPORT / "page.css", *styles))
    style = Markup("\n".join(sheets))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _templates(template.parent, REPORT).get_template(template.name)
    return page.render(style=style, style_hash=digest, **values)


@cache
def _templates(*folders: Path) -> Environment:
    """Renders the templates in some folders: escaped, strict about names, with the report's filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    filters = (printable, number, duration, level, piece, breakable, setting, written)
    environment.filters.update({each.__name__: each for each in filters})
    return environment


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def level(nats: float) -> int:
    """Which colour a token of so many nats has: 0 for as good as certain, then darker."""
    return sum(nats >= border for border in LEVELS)


def piece(text: str) -> str:
    """A token's text with its white space to be seen, for a list of tokens."""
    seen = text.replace(" ", "␣").replace("\t", "⇥").replace("\n", "↵")
    return printable(seen) or "∅"


_BREAKS = re.compile(r"(?<=[/:,=])(?=[^/:,=\s])|(?<=[^\W_][_.-])(?=[^/_.:,=\s-])(?!\w{1,4}$)")
_LONGEST = 28
"""Characters of a part without separators, such as a digest, that stay on one line."""


def breakable(text: str) -> Markup:
    """A name that may break after its separators (/, _, ., -, …), but not in a word, nor before a suffix."""
    from markupsafe import Markup, escape

    parts = _BREAKS.split(printable(text))
    pieces = [part[at : at + _LONGEST] for part in parts for at in range(0, len(part), _LONGEST)]
    return Markup("<wbr>").join(map(escape, pieces))


def setting(value: object) -> str:
    """A param as params.yaml can hold it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def written(text: str) -> Markup:
    """A text whose line breaks are kept, and marked: at its end and in an empty line nobody sees them otherwise."""
    from markupsafe import Markup, escape

    return Markup('<span class="mark">↵</span>\n').join(map(escape, printable(text).split("\n")))


def _drawn(report: Report) -> str:
    """What the intervals were drawn over, in words: the last side's."""
    if not report.breakdowns:
        return ""
    what, drawn = units(list(report.breakdowns.values())[-1])
    return f"{len(drawn):,} {what}"


def _some(rows: list[Any]) -> list[Any]:
    """At most so many of the rows as anyone reads, evenly spaced."""
    return [rows[place] for place in spread(len(rows), _ROWS)]


def _curves(report: Report) -> list[tuple[Axis, list[Chart]]]:
    training = report.training
    return [(axis, [lay_out(plot) for plot in _plots(report, axis)]) for axis in training_axes(training.history)]


def _plots(report: Report, axis: Axis) -> list[Plot]:
    training = report.training
    return training_plots(report, axis) + objective_plots(training, axis) + callback_plots(training, axis)


@dataclass(frozen=True)
class Bar:
    """A labelled length, in percent of the longest."""

    label: str
    value: float
    width: float
    own: bool = False


def _bars(rows: list[tuple[str, float, bool]]) -> list[Bar]:
    longest = max((value for _, value, _ in rows), default=0.0) or 1.0
    return [Bar(label, value, round(100 * value / longest, 1), own) for label, value, own in rows]


def _baseline_bars(report: Report) -> dict[str, list[Bar]]:
    """Bits per byte of the model and of its baselines, by side; the best on top."""
    names = {"unigram": "unigram model", "xz": "xz -9e compression"}
    bars = {}
    for side in ("val", "test"):
        numbers = report.metrics.get(side, {})
        if "bits_per_byte" in numbers:
            rows = [("this model", numbers["bits_per_byte"], True)]
            rows += [(names.get(name, name), value, False) for name, value in numbers["baselines"].items()]
            bars[side] = _bars(sorted(rows, key=lambda row: row[1]))
    return bars


def _timeline(report: Report) -> list[dict[str, Any]]:
    """What the model wrote on the way, each text with the validation loss of its step."""
    losses = {row["step"]: row.get("val.loss") for row in report.training.history}
    return [{**sample, "loss": losses.get(float(sample["step"]))} for sample in report.training.samples]


@dataclass(frozen=True)
class DocumentRow:
    """A document: its tokens, its mean loss in nats, and the length of its bar in percent."""

    name: str
    tokens: int
    loss: float
    width: float


def _documents(side: Breakdown) -> tuple[list[DocumentRow], list[DocumentRow]]:
    """The easiest documents and the hardest, each from the extreme inward; of a few, all are in the first list."""
    means = sorted((each.nats / each.tokens, each.name, each.tokens) for each in side.documents)
    longest = (means[-1][0] if means else 0.0) or 1.0
    rows = [DocumentRow(name, tokens, mean, round(100 * mean / longest, 1)) for mean, name, tokens in means]
    if len(rows) <= _DOCUMENTS:
        return rows, []
    half = min(_DOCUMENTS, len(rows) // 2)
    return rows[:half], rows[: -half - 1 : -1]


@dataclass(frozen=True)
class FrequencyRow:
    """Tokens that the training text holds so often: how many of the held-out ones, and their loss."""

    seen: str
    tokens: int
    share: float
    loss: float
    width: float


def _frequencies(side: Breakdown) -> list[FrequencyRow]:
    """From the rarest on."""
    bins = sorted(side.frequencies)
    total = sum(tokens for _, tokens, _ in bins) or 1
    longest = max((mean for _, _, mean in bins), default=0.0) or 1.0
    tops = [low - 1 for low, _, _ in bins[1:]]
    rows = []
    for index, (low, tokens, mean) in enumerate(bins):
        if index == len(tops):
            seen = f"{low:,} or more"
        elif tops[index] <= low:
            seen = "never" if low == 0 else "once" if low == 1 else f"{low:,}"
        else:
            seen = f"{low:,} to {tops[index]:,}"
        rows.append(FrequencyRow(seen, tokens, tokens / total, mean, round(100 * mean / longest, 1)))
    return rows
