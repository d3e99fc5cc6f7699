"""Renders the report's page: prepares the records for the template."""

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
from pipeline.evaluate.report.heads import columns, evenly_spaced_indices, head_pictures
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
from pipeline.evaluate.tables import task_table

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

REPORT = Path(__file__).parent
LEVELS = (0.25, 1.0, 2.0, 3.5, 5.0, 7.0, 9.0)
"""The losses in nats at which the colour of a token changes."""
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
    """The HTML page, without scripts, and with a policy that forbids network requests."""
    positions = position_plot(report.breakdowns)
    return render_page(
        REPORT / "page.html.j2",
        *([REPORT / "conversations.css"] if report.conversations or report.answered or report.tasks else []),
        report=report,
        tasks=task_table(report.tasks),
        masked=any("learnt" in file for file in report.data.values()),
        sides=[side for side in ("val", "test") if side in report.metrics],
        cards=CARDS,
        curves=_curves(report),
        positions=lay_out(positions) if has_points(positions) else None,
        bars=_baseline_bars(report),
        drawn=_resampled_units(report),
        end=next((sample.end for group in report.samples for sample in group if sample.end), ""),
        levels=LEVELS,
        unscored=any(token.nats is None for excerpt in report.excerpts for token in excerpt.tokens),
        evaluations=_sample_rows(report.training.history),
        timeline=_sample_rows(_timeline(report)),
        documents={name: _documents(side) for name, side in report.breakdowns.items() if side.documents},
        frequencies={name: _frequencies(side) for name, side in report.breakdowns.items() if side.frequencies},
        head_columns=columns(len(report.attention.heads)) if report.attention else 0,
        heads=head_pictures(report.attention) if report.attention else [],
        params={name: flatten(section).items() for name, section in report.params.items()},
    )


def render_page(template: Path, *styles: Path, **values: Any) -> str:
    """Renders a template that extends base.html.j2 to an HTML page with embedded styles.

    Args:
        template: The template file. It may include other files of its folder.
        styles: Style sheets in addition to page.css.
        values: The variables of the template.
    """
    from markupsafe import Markup

    sheets = (path.read_text(encoding="utf-8").strip() for path in (REPORT / "page.css", *styles))
    style = Markup("\n".join(sheets))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _templates(template.parent, REPORT).get_template(template.name)
    return page.render(style=style, style_hash=digest, **values)


@cache
def _templates(*folders: Path) -> Environment:
    """The Jinja environment for templates in the given folders: autoescape, strict undefined, and the report's
    filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    filters = (printable, number, duration, level, visible_whitespace, breakable, format_param, visible_line_breaks)
    environment.filters.update({each.__name__: each for each in filters})
    return environment


def duration(seconds: float) -> str:
    """Formats seconds for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def level(nats: float) -> int:
    """The colour level of a token with this loss: 0 for nearly certain tokens, then darker."""
    return sum(nats >= border for border in LEVELS)


def visible_whitespace(text: str) -> str:
    """The text of a token with visible white space, for a list of tokens."""
    seen = text.replace(" ", "␣").replace("\t", "⇥").replace("\n", "↵")
    return printable(seen) or "∅"


_BREAKS = re.compile(r"(?<=[/:,=])(?=[^/:,=\s])|(?<=[^\W_][_.-])(?=[^/_.:,=\s-])(?!\w{1,4}$)")
_LONGEST = 28
"""The maximum number of characters without a separator (such as a digest) that are not broken."""


def breakable(text: str) -> Markup:
    """A name with line-break opportunities after separators (/, _, ., -, …), but not in words or before a
    suffix."""
    from markupsafe import Markup, escape

    parts = _BREAKS.split(printable(text))
    pieces = [part[at : at + _LONGEST] for part in parts for at in range(0, len(part), _LONGEST)]
    return Markup("<wbr>").join(map(escape, pieces))


def format_param(value: object) -> str:
    """A value as params.yaml writes it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def visible_line_breaks(text: str) -> Markup:
    """A text with its line breaks kept and marked, because they are invisible at the end and in empty lines."""
    from markupsafe import Markup, escape

    return Markup('<span class="mark">↵</span>\n').join(map(escape, printable(text).split("\n")))


def _resampled_units(report: Report) -> str:
    """The resampled units of the intervals of the last text, such as "31 documents"."""
    if not report.breakdowns:
        return ""
    what, drawn = units(list(report.breakdowns.values())[-1])
    return f"{len(drawn):,} {what}"


def _sample_rows(rows: list[Any]) -> list[Any]:
    """At most `_ROWS` of the rows, evenly spaced."""
    return [rows[index] for index in evenly_spaced_indices(len(rows), _ROWS)]


def _curves(report: Report) -> list[tuple[Axis, list[Chart]]]:
    training = report.training
    return [(axis, [lay_out(plot) for plot in _plots(report, axis)]) for axis in training_axes(training.history)]


def _plots(report: Report, axis: Axis) -> list[Plot]:
    training = report.training
    return training_plots(report, axis) + objective_plots(training, axis) + callback_plots(training, axis)


@dataclass(frozen=True)
class Bar:
    """A labelled bar, with its width in percent of the longest one."""

    label: str
    value: float
    width: float
    is_model: bool = False


def _bars(rows: list[tuple[str, float, bool]]) -> list[Bar]:
    longest = max((value for _, value, _ in rows), default=0.0) or 1.0
    return [Bar(label, value, round(100 * value / longest, 1), is_model) for label, value, is_model in rows]


def _baseline_bars(report: Report) -> dict[str, list[Bar]]:
    """Bits per byte of the model and the baselines by text, the best one first."""
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
    """The sample texts during training, each with the validation loss of its step."""
    losses = {row["step"]: row.get("val.loss") for row in report.training.history}
    return [{**sample, "loss": losses.get(float(sample["step"]))} for sample in report.training.samples]


@dataclass(frozen=True)
class DocumentRow:
    """A document: its number of tokens, its mean loss in nats, and the width of its bar in percent."""

    name: str
    tokens: int
    loss: float
    width: float


def _documents(side: Breakdown) -> tuple[list[DocumentRow], list[DocumentRow]]:
    """The easiest and the hardest documents, the most extreme first. If there are few, all are in the first
    list."""
    means = sorted((each.nats / each.tokens, each.name, each.tokens) for each in side.documents)
    longest = (means[-1][0] if means else 0.0) or 1.0
    rows = [DocumentRow(name, tokens, mean, round(100 * mean / longest, 1)) for mean, name, tokens in means]
    if len(rows) <= _DOCUMENTS:
        return rows, []
    half = min(_DOCUMENTS, len(rows) // 2)
    return rows[:half], rows[: -half - 1 : -1]


@dataclass(frozen=True)
class FrequencyRow:
    """Held-out tokens by their count in the training text: their number, share and loss."""

    seen: str
    tokens: int
    share: float
    loss: float
    width: float


def _frequencies(side: Breakdown) -> list[FrequencyRow]:
    """The rows by token frequency, the rarest first."""
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
