"""A sweep's answer as people read it: in words and a table, plain, as Markdown or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from pipeline.comparison.rendering import aligned, decimals, finite, grid
from pipeline.comparison.sweep import Recipe, Sweep, labels
from pipeline.evaluate.bootstrap import LEVEL


def answer(sweep: Sweep) -> list[str]:
    """What the sweep says and what it cannot say, in sentences; the first is the answer."""
    names = list(labels(sweep))
    best = names[sweep.best]
    verdicts: dict[str, list[str]] = {"worse": [], "equal": [], "once": []}
    for index, recipe in enumerate(sweep.recipes):
        if index != sweep.best:
            verdict = "once" if recipe.contrast is None else "worse" if recipe.contrast.significant else "equal"
            verdicts[verdict].append(names[index])
    lines = []
    if len(sweep.recipes) == 1:
        lines.append(f"There is one recipe, {best}: nothing to compare it with.")
    elif not sweep.pairs:
        lines.append(f"{best} has the lowest {sweep.sides[0]} loss, and may owe it to luck.")
    elif sweep.winner:
        lines.append(f"{best} is the best: better than {_each_of(verdicts['worse'])}.")
    elif verdicts["worse"]:
        lines.append(f"{best} is better than {_each_of(verdicts['worse'])}.")
    else:
        lines.append(f"No winner: {best} has the lowest mean, which chance alone may have given it.")
    if verdicts["equal"]:
        lines.append(f"Not to be told from {best} with these seeds: {', '.join(verdicts['equal'])}.")
    if verdicts["once"] and not sweep.pairs:
        lines.append(
            "One seed of each recipe cannot tell a better recipe from a luckier seed: train two or more of each, "
            "better three (-S train.seed=1,2,3)."
        )
    elif verdicts["once"]:
        lines.append(f"One seed tells nothing about {', '.join(verdicts['once'])}: train more of them.")
    for name, values in sweep.confounded.items():
        lines.append(
            f"The recipes also differ in {name} ({', '.join(_value(value) for value in values)}): a difference may "
            f"come from that. Add --by {name} to show it."
        )
    return lines


def _each_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"each of {', '.join(names)}" if len(names) > 1 else "nothing"


def notes(sweep: Sweep) -> Iterator[str]:
    """How the numbers of the table were found."""
    yield (
        f"Mean ± standard deviation over the seeds, in {sweep.unit}; {sweep.sides[0]} decides the order. Processor "
        "seconds and FLOPs are those of one run."
    )
    yield (
        "To best: the step at which a recipe's val.loss is as low as the best one's ever is. Best to it: the step "
        "at which the best one's is as low as this recipe's ever is."
    )
    if sweep.pairs:
        many = f"{sweep.pairs} pairs" if sweep.pairs > 1 else "one pair"
        yield (
            f"p and the {LEVEL:.0%} intervals are about other seeds and other text, and corrected for {many} of "
            "recipes (Holm): of sweeps without any difference, at most one in 20 shows one."
        )


def table(sweep: Sweep) -> list[list[str]]:
    """The recipes, best first, below a head."""
    others = sweep.sides[1:]
    steps = ["steps", "to best", "best to it"]
    head = ["", "seeds", sweep.sides[0], "from best", "p", *others, *steps, "processor s", "FLOPs"]
    return [head, *(_row(sweep, index, name) for index, name in enumerate(labels(sweep)))]


def _row(sweep: Sweep, index: int, name: str) -> list[str]:
    recipe = sweep.recipes[index]
    found = recipe.contrast
    if found is None:
        difference, p = ("best" if index == sweep.best else "one seed"), ""
    else:
        half = (found.high - found.low) / 2
        digits = decimals(half)
        difference = f"{found.difference:+.{digits}f} ± {half:.{digits}f}"
        p = f"{found.p:.2g}" if found.p >= 0.0001 else "< 0.0001"
    main, *others = (_mean_and_deviation(recipe.losses[side]) for side in sweep.sides)
    steps = ["–" if each is None else f"{each:,.0f}" for each in (recipe.steps_to_best, recipe.best_steps)]
    cost = recipe.cost
    return [
        name, str(len(recipe.runs)), main, difference, p, *others,
        f"{cost.steps:,.0f}", *steps, f"{cost.processor_seconds:,.1f}", f"{cost.flops:.2e}",
    ]  # fmt: skip


def _mean_and_deviation(losses: list[float]) -> str:
    return f"{fmean(losses):.4f}" + (f" ± {stdev(losses):.4f}" if len(losses) > 1 else "")


def _value(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def as_text(sweep: Sweep) -> Iterator[str]:
    """Lines for a terminal."""
    yield from answer(sweep)
    yield ""
    yield from aligned(table(sweep))
    yield ""
    yield from notes(sweep)
    for name, why in sweep.left_out.items():
        yield f"left out: {name}: {why}"


def as_markdown(sweep: Sweep) -> Iterator[str]:
    """Lines for a pull request or a notebook."""
    first, *others = answer(sweep)
    yield f"**{first}**"
    if others:
        yield ""
        yield " ".join(others)
    yield ""
    yield from grid(table(sweep))
    yield ""
    yield " ".join(notes(sweep))
    if sweep.left_out:
        yield ""
    for name, why in sweep.left_out.items():
        yield f"- left out: {name}: {why}"


def as_json(sweep: Sweep) -> str:
    """Everything, for programs; a number that is not finite becomes null."""
    document = {
        "question": "sweep",
        "by": sweep.keys,
        "unit": sweep.unit,
        "answer": answer(sweep),
        "winner": sweep.recipes[sweep.best].values if sweep.winner else None,
        "pairs": sweep.pairs,
        "recipes": [_as_dict(sweep, index, recipe) for index, recipe in enumerate(sweep.recipes)],
        "confounded": sweep.confounded,
        "left_out": sweep.left_out,
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str)


def _as_dict(sweep: Sweep, index: int, recipe: Recipe) -> dict[str, Any]:
    found = recipe.contrast
    return {
        "values": recipe.values,
        "best": index == sweep.best,
        **{
            side: {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "losses": values}
            for side, values in recipe.losses.items()
        },
        "from_best": None if found is None else {**finite(asdict(found)), "differ": found.significant},
        "steps_to_best": recipe.steps_to_best,
        "best_steps": recipe.best_steps,
        **asdict(recipe.cost),
        "curve": recipe.curve,
        "runs": [{"name": run.result.name, "seed": run.result.seed} for run in recipe.runs],
    }
