"""Sweeps: recipes are ranked over their seeds, differences are tested, and unused runs are listed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project
from made_runs import PARAMS, scored, simulated, write_run

from pipeline.comparison.runs import PairedScores
from pipeline.comparison.sources import Folder
from pipeline.comparison.sweep import QUEUED, RUNNING, _contrasts, holm, read_sweep
from pipeline.comparison.sweep_page import render
from pipeline.comparison.sweep_rendering import as_text

BY = ("compare", "--by", "train.lr")


def run_of(root: Path, name: str, seed: int, lr: float, shift: float, **more: Any) -> None:
    """Writes the folder of a run whose loss falls by a third until step 20 and ends at 4 + shift."""
    params = {**PARAMS, "train": {"seed": seed, "lr": lr, **more}}
    number = sum(map(ord, name))
    write_run(root / name, scored(number, shift=shift), params)
    rows = [f"{step}\t{4 + shift + 2 - step / 10}" for step in (0, 10, 20)]
    (root / name / "metrics" / "history.tsv").write_text("\n".join(["step\tval.loss", *rows]) + "\n")
    spent = {"seconds": 2.0, "processor_seconds": 3.0 + seed, "model_flops_per_sec": 1e9}
    (root / name / "metrics" / "performance.json").write_text(json.dumps(spent))


def names(*letters: str) -> list[str]:
    return [f"{letter}{seed}" for letter in letters for seed in (1, 2, 3)]


@pytest.fixture
def sweep(project: Project) -> Project:
    """Three learning rates with three seeds each: b is better than a by 0.2, c equals b."""
    for letter, lr, shift in (("a", 0.01, 0.2), ("b", 0.02, 0.0), ("c", 0.04, 0.0)):
        for seed in (1, 2, 3):
            run_of(project.root, f"{letter}{seed}", seed, lr, shift)
    return project


def answered(project: Project, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(project.succeed(*BY, *arguments, "--json").out)
    return found


def test_recipes_are_ranked_and_what_differs_is_told(sweep: Project) -> None:
    found = answered(sweep, *names("a", "b", "c"))
    first, second, third = found["recipes"]
    assert third["values"] == {"train.lr": 0.01}
    assert [each["val"]["mean"] for each in found["recipes"]] == sorted(
        each["val"]["mean"] for each in found["recipes"]
    )
    assert found["pairs"] == 3
    assert first["from_best"] is None
    assert not second["from_best"]["differ"]
    assert second["from_best"]["low"] < 0 < second["from_best"]["high"]
    assert third["from_best"]["differ"]
    assert third["from_best"]["difference"] == pytest.approx(0.2, abs=0.05)
    assert third["from_best"]["low"] > 0
    assert third["from_best"]["p"] >= 2 * third["from_best"]["p_value"]
    assert found["winner"] is None
    assert "lr=0.01" in found["answer"][0]
    assert len(first["val"]["losses"]) == 3
    assert first["processor_seconds"] == 5
    assert first["flops"] == 2e9
    assert third["steps_to_best"] is None
    assert (first["steps_to_best"], third["best_steps"]) == (20, 20)
    assert answered(sweep, *names("a", "b"))["winner"] == {"train.lr": 0.02}


def test_recipes_are_compared_with_a_baseline(sweep: Project) -> None:
    by = (*BY, *names("a", "b", "c"), "--baseline", "a2")
    found = json.loads(sweep.succeed(*by, "--json").out)
    assert found["baseline"] == {"train.lr": 0.01}
    assert (found["pairs"], found["winner"]) == (2, None)
    first, second, third = found["recipes"]
    assert third["values"] == found["baseline"]
    assert (first["best"], third["best"], third["from_baseline"]) == (True, False, None)
    for each in (first, second):
        assert each["from_baseline"]["difference"] == pytest.approx(-0.2, abs=0.05)
        assert each["from_baseline"]["high"] < 0
        assert each["from_baseline"]["p"] <= 2 * each["from_baseline"]["p_value"]
    assert "than the baseline lr=0.01: lr=0.0" in found["answer"][0]
    out = sweep.succeed(*by, "--html", "sweep.html").out
    for text in (out, sweep.succeed(*by, "--markdown").out, (sweep.root / "sweep.html").read_text()):
        assert all(part in text for part in ("from baseline", "2 pairs", "differences from the baseline"))
        assert "best" not in text.replace("best first", "").replace("best.pth", "")


def test_the_chosen_metrics_are_columns(sweep: Project) -> None:
    for name in names("a", "b"):
        path = sweep.root / name / "metrics" / "evaluate.json"
        numbers = json.loads(path.read_text())
        numbers["val"]["mine"] = 0.125
        path.write_text(json.dumps(numbers))
    assert re.search(r" FLOPs +val mine$", sweep.succeed(*BY, *names("a", "b")).out, flags=re.MULTILINE)
    assert [each["metrics"] for each in answered(sweep, *names("a", "b"))["recipes"]] == [{"val mine": 0.125}] * 2


def test_the_values_of_a_baseline_that_is_no_run_come_from_its_params(sweep: Project) -> None:
    (sweep.root / "base" / "metrics").mkdir(parents=True)
    params = sweep.root / "base" / "params.yaml"
    params.write_text("train: {lr: 0.02}")
    by = (*BY, *names("a", "b"), "--baseline", "base")
    assert "worse than the baseline lr=0.02: lr=0.01" in sweep.succeed(*by).out.lower()
    for text, says in (("train: {lr: 0.5}", ("base", "train.lr=0.5", "train.lr=0.01")), ("[1]", ("params.yaml",))):
        params.write_text(text)
        result = sweep.run(*by)
        assert result.code == 1
        assert all(part in result.err for part in says)
        assert len(result.err.splitlines()) == 1
    assert sweep.run("compare", "a1", "b1", "--baseline", "a1").code == 2


def test_steps_to_a_loss_are_shown_only_if_a_recipe_reaches_it_before_its_end(sweep: Project) -> None:
    by = (*BY, *names("a", "b"))
    assert "to best" not in sweep.succeed(*by).out  # all are lowest at their last step, and a is never as low as b
    for name in names("a"):
        (sweep.root / name / "metrics" / "history.tsv").write_text("step\tval.loss\n0\t9\n20\t5\n")
    out = sweep.succeed(*by, "--html", "sweep.html").out  # b is as low at step 10
    assert re.search(r"^  lr=0.01 .* –  +10 ", out, flags=re.MULTILINE)
    assert "best to it" in (sweep.root / "sweep.html").read_text()
    assert "baseline to it" in sweep.succeed(*by, "--baseline", "a1").out


def test_text_and_markdown_have_a_row_for_each_recipe(sweep: Project) -> None:
    out = sweep.succeed(*BY, *names("a", "b")).out
    assert out.splitlines()[0].startswith("lr=0.02 is the best")
    assert re.search(r"^  lr=0.01 +3 .* ± .* \+0\.\d+ ± ", out, flags=re.MULTILINE)
    assert "Holm" in out
    page = sweep.succeed(*BY, *names("a", "b"), "--markdown").out
    assert re.search(r"^\| lr=0.01 \| 3 \|", page, flags=re.MULTILINE)


def test_the_page_has_curves_for_each_recipe_and_asks_for_nothing(sweep: Project) -> None:
    sweep.succeed(*BY, *names("a", "b", "c"), "--html", "sweep.html")
    page = (sweep.root / "sweep.html").read_text()
    first = page[: page.index("later half")]
    assert [first.count(f'class="line r{number}"') for number in range(4)] == [1, 1, 1, 0]
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|@import""", page)
    assert "prefers-color-scheme: dark" in page
    assert "train.evaluation.windows" in page  # what the curves are of
    assert all(name in page for name in names("a", "b", "c"))


def test_one_seed_of_each_gives_an_order_and_no_claim(sweep: Project) -> None:
    found = answered(sweep, "a1", "b1", "c1")
    assert (found["pairs"], found["winner"]) == (0, None)
    assert all(each["from_best"] is None and each["val"]["sd"] is None for each in found["recipes"])
    assert any("One seed" in line and "train.seed" in line for line in found["answer"])
    some = answered(sweep, *names("a", "b"), "c1")
    assert some["pairs"] == 1
    assert some["winner"] is None
    assert any("One seed" in line and "lr=0.04" in line for line in some["answer"])


def test_what_does_not_count_is_named(sweep: Project) -> None:
    run_of(sweep.root, "again", 1, 0.01, 0.2)
    (sweep.root / "c3" / "reports" / "documents.tsv").unlink()
    found = answered(sweep, *names("a", "b", "c"), "again")
    assert "a1" in found["left_out"]["again"]
    assert "documents.tsv" in found["left_out"]["c3"]
    assert sorted(len(each["runs"]) for each in found["recipes"]) == [2, 3, 3]


def test_other_params_that_differ_are_named(sweep: Project) -> None:
    for seed in (1, 2, 3):
        run_of(sweep.root, f"d{seed}", seed, 0.08, 0.0, warmup=5)
    found = answered(sweep, *names("b", "d"))
    assert sorted(found["confounded"]["train.warmup"], key=str) == [5, None]
    assert any("train.warmup" in line for line in found["answer"])
    several = sweep.succeed(*BY, "--by", "train.warmup", *names("b", "d")).out
    assert "also differ" not in several
    assert "train.lr, train.warmup" in several
    assert re.search(r"^  0.08, 5 +3 ", several, flags=re.MULTILINE)


def test_long_recipes_are_lettered_with_a_legend(sweep: Project) -> None:
    for seed in (1, 2, 3):
        run_of(sweep.root, f"d{seed}", seed, 0.08, 0.0, loss="a-loss-with-a-long-name")
    by = (*BY, "--by", "train.loss", *names("a", "d"))
    out = sweep.succeed(*by, "--html", "sweep.html").out
    assert out.startswith("A is the best")
    assert re.search(r"^  A: 0.08, a-loss-with-a-long-name$", out, flags=re.MULTILINE)
    assert re.search(r"^  A +3 ", out, flags=re.MULTILINE)
    page = (sweep.root / "sweep.html").read_text()
    assert all(part in page for part in ("Recipes by 2 params</title>", "A: 0.08, a-loss", "B: 0.01"))
    found = json.loads(sweep.succeed(*by, "--json").out)
    assert [each["label"] for each in found["recipes"]] == ["A", "B"]


def test_one_recipe_is_nothing_to_compare(sweep: Project) -> None:
    out = sweep.succeed(*BY, *names("a")).out
    assert "only one recipe, train.lr=0.01:" in out
    assert "best" not in out
    refused = sweep.run(*BY, *names("a"), "--html", "sweep.html")
    assert refused.code == 1
    assert "only one recipe" in refused.err
    assert not (sweep.root / "sweep.html").exists()


def test_runs_that_are_not_complete_are_counted_and_named(sweep: Project) -> None:
    found = read_sweep(
        [Folder(sweep.root / name, name) for name in names("a", "b")], ["train.lr"],
        {"x": RUNNING, "y": RUNNING, "z": QUEUED, "w": "failed, see `dvc queue logs w`"},
    )  # fmt: skip
    text = "\n".join(as_text(found))
    assert "2 running, 1 waiting in the queue" in text
    assert "left out: x, y (running)" in text
    assert "left out: z (queued)" in text
    page = render(found)
    assert "x, y (running)" in page
    assert "`" not in page[page.index("<body") :]


def test_wrong_sweeps_are_one_line(sweep: Project) -> None:
    run_of(sweep.root, "other", 4, 0.01, 0.2, warmup=5)
    for arguments, code, says in (
        ((*BY, "a1", "other"), 1, ("a1 and other", "--by train.warmup")),
        (("compare", "--by", "train.nothing", "a1", "b1"), 1, ("train.nothing", "train.lr")),
        ((*BY, "a1", "--against", "b1"), 2, ("--by", "--against")),
        (BY, 1, ("dvc exp run --queue", "train.lr")),
    ):
        result = sweep.run(*arguments)
        assert result.code == code
        assert len(result.err.splitlines()) == 1
        assert all(part in result.err for part in says), result.err


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def a_sweep(
    generator: np.random.Generator,
    recipes: int,
    seeds: int,
    effect: float,
    spread: tuple[float, ...] = (1.0,),
    baseline: bool = False,
) -> tuple[bool, bool]:
    """Whether a made-up sweep shows any difference from its best recipe (with `baseline`: from the first one), and
    whether the first is shown to be better than all.

    The first recipe is better by `effect`; a seed shifts the loss by a standard deviation of 0.02, times what
    `spread` has for the recipe, and each document's by 0.05.
    """
    text = simulated(generator, (recipes * seeds, 0), 40, 0.0, 0.05)
    shifts = [
        (0.0 if recipe == 0 else effect) + generator.normal(0, 0.02 * spread[recipe % len(spread)])
        for recipe in range(recipes)
        for _ in range(seeds)
    ]
    paired = PairedScores(text.what, text.names, text.nats + np.array(shifts)[:, None] * text.sizes, text.sizes)
    rows = [list(range(recipe * seeds, (recipe + 1) * seeds)) for recipe in range(recipes)]
    best = int(np.argmin([paired.losses[run_rows].mean() for run_rows in rows]))
    best = 0 if baseline else best
    contrasts, pairs = _contrasts(paired, rows, best, baseline)
    assert pairs == (recipes - 1 if baseline else recipes * (recipes - 1) // 2)
    found = [each.significant for each in contrasts.values()]
    return any(found), all(found) and best == 0


def shares(tries: int, *sweep: Any) -> tuple[float, float]:
    generator = np.random.default_rng(7)
    each = np.array([a_sweep(generator, *sweep) for _ in range(tries)])
    return float(each[:, 0].mean()), float(each[:, 1].mean())


@pytest.mark.long
@pytest.mark.parametrize(
    "spread", [(1.0,), (1.0, 1.0, 1.0, 1.0, 1.0, 5.0)], ids=["equal", "one recipe varies more"]
)
def test_of_1000_sweeps_of_6_equal_recipes_at_most_5_in_100_show_a_difference(spread: tuple[float, ...]) -> None:
    shown, _ = shares(1000, 6, 3, 0.0, spread)
    assert shown <= 0.05


@pytest.mark.long
@pytest.mark.parametrize(
    "spread", [(1.0,), (5.0, 1.0, 1.0, 1.0, 1.0, 1.0)], ids=["equal", "the baseline varies more"]
)
def test_of_1000_sweeps_of_6_equal_recipes_at_most_5_in_100_differ_from_a_baseline(
    spread: tuple[float, ...],
) -> None:
    shown, _ = shares(1000, 6, 3, 0.0, spread, True)
    assert shown <= 0.05


@pytest.mark.parametrize(("recipes", "seeds", "effect", "least"), [(3, 3, 0.16, 0.9), (6, 5, 0.12, 0.9)])
def test_a_planted_winner_is_found(recipes: int, seeds: int, effect: float, least: float) -> None:
    assert shares(20, recipes, seeds, effect)[1] >= least


def test_few_sweeps_of_equal_recipes_show_a_difference() -> None:
    # Of 40 sweeps with a chance of 0.05 each, 7 or more come up three times in a thousand.
    assert shares(40, 4, 3, 0.0)[0] < 7 / 40
    assert shares(40, 4, 3, 0.0, (1.0,), True)[0] < 7 / 40


def test_fewer_seeds_show_a_difference_from_a_baseline_than_a_winner() -> None:
    assert shares(20, 6, 3, 0.12, (1.0,), True)[1] >= shares(20, 6, 3, 0.12)[1]
