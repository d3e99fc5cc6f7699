"""The report: texts are escaped, no network requests, and the same run gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import made_up

from pipeline.evaluate.breakdown import PositionLoss
from pipeline.evaluate.report.chart import lay_out, nice_ticks, number, tick_labels
from pipeline.evaluate.report.figures import write_figures
from pipeline.evaluate.report.heads import evenly_spaced_indices, habit
from pipeline.evaluate.report.page import LEVELS, breakable, duration, level, render, visible_line_breaks
from pipeline.evaluate.report.plots import (
    Axis,
    Plot,
    Series,
    callback_plots,
    objective_plots,
    position_plot,
    training_axes,
    training_plots,
)
from pipeline.evaluate.report.records import Training
from pipeline.evaluate.samples import Sample

STYLE = (REPOSITORY / "pipeline" / "evaluate" / "report" / "page.css").read_text(encoding="utf-8")


class Skeleton(HTMLParser):
    """Tags, attribute names and links: everything that an unescaped text could add."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(re.sub('<wbr>|<span class="mark">↵</span>', "", page))  # what the report adds within texts
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(tag)

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", data))

    def handle_data(self, data: str) -> None:
        self.text += data


NASTY = (
    "</script><script>alert(1)</script>", "<!--", "-->", "]]>", "\u2028\u2029", "</style>", "</pre></label>",
    '"><img src=x onerror=alert(1)>', "' onfocus=alert(1) autofocus='", "{{ 7 * 7 }}{% raw %}", "&lt;&amp;",
    "\x00\x1b[31m\u202e", "javascript:alert(1)", "\r\n\t", "<svg onload=alert(1)>", "\ud800",
)  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(st.one_of(st.text(min_size=1), st.lists(st.sampled_from(NASTY), min_size=1).map("".join)))
@example("".join(NASTY))
def test_no_text_changes_the_page_around_it(text: str) -> None:
    page = Skeleton(render(made_up(text, evaluations=2, layers=1, heads=1, chat=True)))
    assert page.tags == PLAIN.tags
    assert page.addresses == PLAIN.addresses
    assert not re.search("[\x00\x1b\u202e\ud800-\udfff]", page.text)


PLAIN = Skeleton(render(made_up(evaluations=2, layers=1, heads=1, chat=True)))


@pytest.mark.parametrize("chat", [False, True])
def test_the_page_has_no_script_and_leads_nowhere(chat: bool) -> None:
    page = render(made_up(chat=chat))
    tags = [tag for tag in Skeleton(page).tags if isinstance(tag, tuple)]
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in tags}
    assert all(not name.startswith("on") and name != "style" for _, names in tags for name in names)
    assert all(re.match("#|data:", address) for address in Skeleton(page).addresses)
    assert "url(" not in page
    assert "@import" not in page
    assert "://" not in page


@pytest.mark.parametrize("chat", [False, True])
def test_the_policy_allows_this_very_style_and_pictures_in_the_page_only(chat: bool) -> None:
    page = render(made_up(chat=chat))
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)
    assert policy
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy[1].replace("&#39;", "'").split("; ") == [
        "default-src 'none'", f"style-src 'sha256-{digest}'", "img-src data:", "base-uri 'none'",
        "form-action 'none'",
    ]  # fmt: skip


def test_the_headings_are_an_outline_and_every_figure_says_what_it_shows() -> None:
    page = Skeleton(render(made_up(chat=True)))
    levels = [int(tag[0][1]) for tag in page.tags if isinstance(tag, tuple) and re.fullmatch("h[1-6]", tag[0])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for tag in page.tags:
        if isinstance(tag, tuple) and tag[0] == "img":
            assert "alt" in tag[1]
        if isinstance(tag, tuple) and tag[0] == "svg":
            assert {"aria-label", "aria-hidden"} & set(tag[1]) or "viewbox" in tag[1]  # the last within the first


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of #rrggbb."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(theme: str) -> None:
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    found = re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", light if theme == "light" else dark)
    colours = dict(found)
    assert len(colours) == 25
    inks = ("text", "soft", "val", "train", "test", "other", *(f"r{number}" for number in range(8)))
    pairs = [(ink, behind) for ink in inks for behind in ("page", "card")]
    pairs += [("text", f"l{number}") for number in range(len(LEVELS) + 1)] + [("page", "text")]
    for text, behind in pairs:
        one, other = sorted((luminance(colours[text]), luminance(colours[behind])))
        assert (other + 0.05) / (one + 0.05) >= 4.5, (text, behind)


def test_the_same_report_is_the_same_bytes(tmp_path: Path) -> None:
    report = made_up()
    plots = training_plots(report, training_axes(report.training.history)[0])[:2]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_figures(plots, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "loss.png", "loss.svg", "bits_per_byte.png", "bits_per_byte.svg",
    }  # fmt: skip
    assert render(report) == render(made_up())


def test_a_report_of_almost_nothing_is_a_report() -> None:
    report = made_up()
    bare = {"loss": 800.0, "accuracy": 0.0, "tokens": 1, "baselines": {"unigram": 8.0, "xz": 9.0}}
    report = replace(
        report,
        step=0,
        stride=1,
        metrics={"val": bare},
        training=Training([{"step": 0.0}], {"seconds": 0.0, "tokens_per_sec": 0.0}, []),
        samples=[],
        excerpts=[],
        attention=None,
        breakdowns={},
    )
    page = render(report)
    assert "No prompts are set" in page
    assert "800" in page


# ── charts ────────────────────────────────────────────────────────────────────────────────────────


def plot(*points: tuple[float, float], log: bool = False) -> Plot:
    return Plot("loss", "Loss", "nats", "steps", "steps", [Series("train", list(points))], log_x=log, log_y=log)


numbers = st.floats(min_value=-1e12, max_value=1e12, allow_subnormal=False)


@given(st.lists(st.tuples(numbers, st.one_of(numbers, st.just(math.nan), st.just(math.inf)))), st.booleans())
@example([(1.0, 2.0), (1.0000000001, 2.0)], False)
@example([(1e-300, 1e-300)], True)
@example([(1.0, 1.0), (1.0, 2.2250738585072014e-308)], True)
def test_whatever_the_numbers_everything_lies_inside(points: list[tuple[float, float]], log: bool) -> None:
    chart = lay_out(plot(*sorted(points), log=log))
    for line in chart.lines:
        assert all(-0.01 <= share <= 100.01 for dot in line.dots for share in dot)
        assert all(0 <= int(corner) <= 1000 for corner in re.split("[ ,]", line.corners))
    assert all(-0.01 <= tick.at <= 100.01 for tick in chart.x_ticks + chart.y_ticks)
    assert sum(each.width for each in chart.readouts) == pytest.approx(100 if chart.readouts else 0, abs=1)


@given(numbers, st.floats(min_value=1e-6, max_value=1e9))
def test_ticks_are_few_and_round(low: float, span: float) -> None:
    high = low + span
    if (high - low) / max(abs(low), abs(high)) < 1e-6:
        return
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert low - 1e-6 * span <= ticks[0] <= ticks[-1] <= high + 1e-6 * span


def test_numbers_read_as_people_write_them() -> None:
    visible_line_breaks = {
        0.0: "0", 4.262465: "4.262", 70.98: "70.98", 0.02: "0.02", 0.0003: "3e-4", 2.5e-5: "2.5e-5", -1.5: "-1.5",
        2200.0: "2,200", 13_317.8: "13.3 k", 3_342_336.0: "3.34 M", 1.24e8: "124 M",
    }  # fmt: skip
    assert {value: number(value) for value in visible_line_breaks} == visible_line_breaks
    assert [label for _, label in tick_labels([0, 5e3, 1e4])] == ["0", "5 k", "10 k"]
    assert [duration(seconds) for seconds in (4.2, 338.3, 20_000)] == ["4 s", "5 min 38 s", "5 h 33 min"]


def test_a_read_out_says_what_the_points_say() -> None:
    chart = lay_out(plot((0, 8.3), (200, 4.554), (400, 3.951)))
    rows = [each.rows for each in chart.readouts]
    assert rows == [["0 steps · 8.3"], ["200 steps · 4.554"], ["400 steps · 3.951"]]
    assert chart.readouts[1].at == 50
    assert "train from 8.3 to 3.951, lowest 3.951 at 400" in chart.summary


def test_many_evaluations_keep_their_line_and_lose_some_read_outs() -> None:
    chart = lay_out(plot(*((step, 1.0 + 1 / (1 + step)) for step in range(5000))))
    assert len(chart.lines[0].corners.split()) == 5000
    assert len(chart.readouts) <= 60
    assert chart.readouts[-1].rows[0].startswith("4,999 steps")


def test_positions_are_pooled_without_changing_their_mean() -> None:
    positions = [PositionLoss(position, 10 + position % 3, 5.0 - position / 100) for position in range(256)]
    breakdown = made_up().breakdowns["val"]._replace(positions=positions)
    points = position_plot({"val": breakdown}).series[0].points
    assert 10 < len(points) < 40
    assert points[0] == pytest.approx((1, positions[0].nats))
    assert all(one[0] < other[0] for one, other in pairwise(points))


def test_the_axes_of_training_are_those_for_which_there_are_numbers() -> None:
    history = made_up().training.history
    assert [axis.label for axis in training_axes(history)] == ["steps", "tokens", "processor time, seconds"]
    longer = [{**row, "processor_seconds": 60 * row["processor_seconds"]} for row in history]
    assert training_axes(longer)[-1].label == "processor time, minutes"
    assert [axis.name for axis in training_axes([{"step": 0.0}, {"step": 5.0}])] == ["steps"]


STEPS = Axis("steps", "step", "steps", "steps")


def test_curves_of_single_steps_are_theirs_and_of_very_many_steps_some() -> None:
    report = made_up()
    rows = [
        {
            "step": step,
            "tokens": 8.0 * step,
            "train.objective": 9.0 - step / 1e4,
            "grad_norm": 1.0,
            "mine": step / 2,
        }
        for step in range(1, 2001)
    ]
    training = replace(report.training, steps=rows)
    report = replace(report, training=training)
    assert [plot.name for plot in objective_plots(training, STEPS)] == ["objective"]
    (mine,) = (plot.series for plot in callback_plots(training, STEPS) if plot.name == "mine")
    assert mine[0].points == [(step, step / 2) for step in range(1, 2001, 4)]
    norms = {plot.name: plot for plot in training_plots(report, STEPS)}["grad_norm"]
    assert len(norms.series[0].points) == 500
    assert "of single steps" in render(report)
    time = training_axes(report.training.history)[-1]  # of which single steps know nothing
    assert objective_plots(training, time) == []
    assert [plot.name for plot in callback_plots(training, time)] == ["weights"]
    assert len({plot.name: plot for plot in training_plots(report, time)}["grad_norm"].series[0].points) == 5


def test_numbers_of_callbacks_at_evaluations_are_drawn_those_with_one_prefix_together() -> None:
    rows = [
        {"step": step, "val.loss": 3.0, "val.f1": 0.5, "w.a": 1.0 + step, "w.b": 2.0, "alone": 7.0}
        for step in range(3)
    ]
    training = Training(history=rows, performance={}, samples=[])
    plots = {
        plot.name: {line.label: line.points for line in plot.series} for plot in callback_plots(training, STEPS)
    }
    assert {name: list(lines) for name, lines in plots.items()} == {
        "val.f1": ["val.f1"], "w": ["a", "b"], "alone": ["alone"],
    }  # fmt: skip
    assert plots["w"]["a"] == [(0, 1), (1, 2), (2, 3)]
    assert len({line.colour for plot in callback_plots(training, STEPS) for line in plot.series}) == 3


# ── texts and names ───────────────────────────────────────────────────────────────────────────────


def test_line_breaks_are_kept_and_marked_and_so_is_the_end_of_a_text() -> None:
    assert visible_line_breaks("a\n\n<b>") == 'a<span class="mark">↵</span>\n<span class="mark">↵</span>\n&lt;b&gt;'
    report = made_up()
    sample = Sample("prompt", "\n", "greedy", end="<|endoftext|>")
    page = render(replace(report, samples=[[sample]]))
    shown = '<b>prompt</b><span class="mark">↵</span>\n<span class="mark">&lt;|endoftext|&gt;</span></pre>'
    assert shown in page
    assert "&lt;|endoftext|&gt;" not in render(report)


def test_names_break_after_separators_and_never_in_a_word() -> None:
    assert breakable("library/model_files.py") == "library/<wbr>model_<wbr>files.py"
    assert breakable("a/__init__.py") == "a/<wbr>__init__.py"
    assert breakable("<Donaudampfschifffahrt>") == "&lt;Donaudampfschifffahrt&gt;"
    digest = hashlib.sha256().hexdigest()
    assert breakable(digest).replace("<wbr>", "") == digest
    assert max(map(len, breakable(digest).split("<wbr>"))) < 30  # fits a phone


def test_the_unscored_token_is_not_coloured() -> None:
    page = render(made_up())
    assert page.count('<span class="unscored">plain</span>') == 2  # one of each side
    assert "not scored" in page
    scored = [replace(each, tokens=each.tokens[1:]) for each in made_up().excerpts]
    assert "not scored" not in render(replace(made_up(), excerpts=scored))


def test_conversations_show_who_speaks_and_the_loss_of_what_is_learnt() -> None:
    page = render(made_up(chat=True))
    section = page[page.index('<section id="conversations">') : page.index('<section id="where">')]
    assert re.findall('<p class="who">(.*?)</p>', section) == 2 * ["system", "user", "assistant"]
    assert section.count('<span class="read">plain</span>') == 2 * 5
    assert section.count('<span class="t l') == 2 * 8
    assert "val: plain (its beginning)" in section
    assert "test: plain</h3>" in section
    assert len(set(re.findall(r'id="(c-\d+-\d+)"', section))) == 2 * 8
    assert re.findall('<span class="verdict (.*?)">(.*?)</span>', page) == [
        ("yes", "✓ the same"),
        ("no", "✗ another, did not end its turn"),
    ]
    assert "questions · exact match" in page
    plain = render(made_up())
    assert not re.search("talk|verdict|Conversations|tasks", plain)


def test_the_easiest_and_the_hardest_documents_are_two_lists() -> None:
    page = render(made_up())
    lists = re.findall(r'<h4>(\w+)</h4>\n<ol class="documents">(.*?)</ol>', page, re.DOTALL)
    names = {title: re.findall("plain/<wbr>([0-9]+)<", items) for title, items in lists}
    assert names == {
        "Easiest": [str(number) for number in range(8)],
        "Hardest": [str(number) for number in range(30, 22, -1)],
    }
    report = made_up()
    few = report.breakdowns["val"]._replace(documents=report.breakdowns["val"].documents[:3])
    page = render(replace(report, breakdowns={"val": few}))
    assert page.count('<ol class="documents">') == 1
    assert "Hardest" not in page


# ── tokens and heads ──────────────────────────────────────────────────────────────────────────────


def test_a_tokens_colour_grows_with_its_loss() -> None:
    assert [level(nats) for nats in (0.0, 0.25, 1.5, 100.0)] == [0, 1, 2, len(LEVELS)]


def test_a_heads_habit_is_its_share_of_the_weights() -> None:
    weights = np.zeros((5, 5))
    for row in range(5):
        weights[row, max(row - 1, 0)] = 0.75
        weights[row, row] += 0.25
    assert habit(weights) == pytest.approx({"itself": 0.25, "the previous": 0.75, "the first": 0.0})
    assert habit(np.eye(2)) == {}


def test_of_a_large_model_some_layers_are_shown_evenly_spaced() -> None:
    assert evenly_spaced_indices(4, 12) == [0, 1, 2, 3]
    shown = evenly_spaced_indices(48, 12)
    assert len(shown) == 12
    assert shown[0] == 0
    assert shown[-1] == 47
