"""The page that `pipeline compare A B --html FILE` writes: the answer, and both sides' curves in each figure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Project
from made_runs import PARAMS, scored, write_run

TABLES = {
    "history": "step tokens val.loss val.bits_per_byte w.a\n0 0 8 3 {0}\n10 100 {0} 2 {0}\n20 200 {0} 1 {0}\n",
    "timing": "step seconds processor_seconds tokens_per_sec\n0 0 0 0\n10 1 2 100\n20 2 4 100\n",
    "steps": "step tokens learning_rate grad_norm\n1 10 0.1 {0}\n2 20 0.2 {0}\n",
}


def write_curves(folder: Path, loss: float) -> None:
    for name, table in TABLES.items():
        (folder / "metrics" / f"{name}.tsv").write_text(table.format(loss).replace(" ", "\t"))


@pytest.fixture
def runs(project: Project) -> Project:
    """Two seeds of each of two recipes."""
    for number in (1, 2):
        for letter, lr in (("a", 0.02), ("b", 0.03)):
            name = f"{letter}{number}"
            params = {**PARAMS, "train": {"seed": number, "lr": lr}}
            write_run(project.root / name, scored(ord(letter) + number, shift=-0.1 * (letter == "b")), params)
            write_curves(project.root / name, 4 + number + 0.5 * (letter == "b"))
    return project


def page(project: Project, *arguments: str) -> str:
    assert "page.html" in project.succeed("compare", *arguments, "--html", "page.html").out
    return (project.root / "page.html").read_text(encoding="utf-8")


def figures(text: str) -> dict[str, list[str]]:
    """The labels of each figure against steps, with the last value of each line."""
    steps = re.search('<div class="charts by-steps">(.*?)<div class="charts by-tokens">', text, re.DOTALL)
    assert steps
    found = {}
    for figure in steps[1].split("<figure")[1:]:
        lines = re.findall(r'<span class="key r\d">(.*?)</span>', figure)
        title, about = re.findall(r'<h3>(.*?)</h3> <span class="soft">(.*?)</span>', figure)[0]
        found[f"{title}, {about}".replace("<wbr>", "")] = [re.sub("<.*?>", "", line) for line in lines]
    return found


def test_both_runs_are_in_each_figure_below_the_answer(runs: Project) -> None:
    text = page(runs, "a1", "b1")
    assert re.search(r"val: B is better by \d", text)
    assert all(name in text for name in ("a1: the best weights", "b1: the best weights", "train.lr"))
    drawn = figures(text)
    assert drawn["Validation loss, nats per token"] == ["A: a1 5", "B: b1 5.5"]
    assert drawn["Validation loss, the later half"] == ["A: a1 5", "B: b1 5.5"]
    assert drawn["w.a, from a callback"] == ["A: a1 5", "B: b1 5.5"]
    assert {"Bits per byte, of validation text", "Gradient norm, before clipping"} < drawn.keys()
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)|url\(|@import""", text)


def test_of_several_seeds_the_mean_is_drawn(runs: Project) -> None:
    text = page(runs, "a1", "a2", "--against", "b1", "b2")
    assert figures(text)["Validation loss, nats per token"] == ["A: mean of 2 seeds 5.5", "B: mean of 2 seeds 6"]
    assert all(f"{name}: the best weights" in text for name in ("a1", "a2", "b1", "b2"))


def test_losses_of_other_tokens_are_not_drawn_together(runs: Project) -> None:
    about = {side: {"tokens": f"other {side} tokens", "text": f"{side} text"} for side in ("val", "test")}
    write_run(runs.root / "b1", scored(5), sides=about)
    drawn = figures(page(runs, "a1", "b1"))
    assert not [title for title in drawn if "nats per token" in title]
    assert list(drawn)[:2] == ["Bits per byte, of validation text", "Bits per byte, the later half"]


@pytest.mark.parametrize("damage", ["no file", "no number"])
def test_a_run_without_curves_is_named(runs: Project, damage: str) -> None:
    path = runs.root / "b1" / "metrics" / "steps.tsv"
    if damage == "no file":
        path.unlink()
    else:
        path.write_text("step\tgrad_norm\n1\tx\n")
    result = runs.run("compare", "a1", "b1", "--html", "page.html")
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert all(part in result.err for part in ("b1", "metrics/steps.tsv", "dvc repro"))
    assert not (runs.root / "page.html").exists()
