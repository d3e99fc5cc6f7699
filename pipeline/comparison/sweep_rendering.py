"""Renders the results of a sweep as text, Markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from pipeline.comparison.rendering import decimals, finite, grid, table_lines
from pipeline.comparison.sweep import QUEUED, RUNNING, Recipe, Sweep, labels, legend, named_values
from pipeline.evaluate.bootstrap import LEVEL


def answer(sweep: Sweep) -> list[str]:
    """The conclusions of the sweep in sentences; the first one is the answer."""
    names = labels(sweep)
    best = names[sweep.best]
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "equal": [], "once": []}
    for index, recipe in enumerate(sweep.recipes):
        if index != sweep.reference:
            contrast = recipe.contrast
            verdict = "once"
            if contrast is not None:
                differs = "better" if contrast.difference < 0 else "worse"
                verdict = differs if contrast.significant else "equal"
            verdicts[verdict].append(names[index])
    lines = []
    if len(sweep.recipes) == 1:
        lines.append(f"There is only one recipe, {named_values(sweep.recipes[0].values)}: nothing to compare.")
    elif sweep.baseline is not None:
        best = f"the baseline {names[sweep.baseline]}"
        found = {each: verdicts[each] for each in ("better", "worse") if verdicts[each]}
        lines += [f"{each.capitalize()} than {best}: {_listed(those)}." for each, those in found.items()]
        lines = lines or [f"No recipe is shown to differ from {best}."]
    elif not sweep.pairs:
        lines.append(f"{best} has the lowest {sweep.sides[0]} loss, but that may be chance.")
    elif sweep.winner:
        lines.append(f"{best} is the best: better than {_each_of(verdicts['worse'])}.")
    elif verdicts["worse"]:
        lines.append(f"{best} is better than {_each_of(verdicts['worse'])}.")
    else:
        lines.append(f"No winner: {best} has the lowest mean loss, but that may be chance.")
    if verdicts["equal"]:
        lines.append(f"Not significantly different from {best} with these seeds: {_listed(verdicts['equal'])}.")
    lines += unfinished(sweep)
    if verdicts["once"] and not sweep.pairs and len(sweep.recipes[sweep.reference].runs) < 2:
        lines.append(
            "One seed per recipe does not show the effect of the seed: train two or more seeds of each, better "
            "three (-S train.seed=1,2,3)."
        )
    elif verdicts["once"]:
        lines.append(f"One seed is not enough to judge {_listed(verdicts['once'])}: train more seeds.")
    for name, values in sweep.confounded.items():
        lines.append(
            f"The recipes also differ in {name} ({', '.join(_value(value) for value in values)}): that may cause a "
            f"difference. Add --by {name} to show it."
        )
    return lines


def _listed(names: list[str]) -> str:
    """Labels in a sentence; those of several params contain commas themselves."""
    return ("; " if any("," in name for name in names) else ", ").join(names)


def unfinished(sweep: Sweep) -> Iterator[str]:
    """A sentence on the runs that are not complete yet, if there are any."""
    running, queued = sweep.unfinished(RUNNING), sweep.unfinished(QUEUED)
    counts = [f"{running} running"] * bool(running) + [f"{queued} waiting in the queue"] * bool(queued)
    if counts:
        what = "`dvc queue status` shows them" if running else "`dvc queue start` runs them"
        yield f"Not complete yet: {', '.join(counts)} ({what})."


def left_out(sweep: Sweep) -> Iterator[str]:
    """A phrase for each reason why runs are left out, with their names, such as "a, b (running)"."""
    for reason in dict.fromkeys(sweep.left_out.values()):
        names = [name for name, why in sweep.left_out.items() if why == reason]
        yield f"{', '.join(names)} ({reason})"


def _each_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"each of {_listed(names)}" if len(names) > 1 else "nothing"


def notes(sweep: Sweep) -> Iterator[str]:
    """Explanations of the numbers in the table."""
    yield (
        f"{' and '.join(sweep.sides)}: mean ± standard deviation over the seeds, in {sweep.unit}. The table is "
        f"sorted by {sweep.sides[0]}. Processor seconds and FLOPs are per run."
    )
    if len(sweep.recipes) == 1:
        return
    if _reached_before_the_end(sweep):
        name = _reference(sweep)
        other = "the baseline" if name == "baseline" else "the best recipe"
        yield (
            f'The column "to {name}" has the step at which this recipe\'s val.loss is as low as the lowest of '
            f'{other}. The column "{name} to it" has the step at which the val.loss of {other} is as low as the '
            "lowest of this one. A – stands for never."
        )
    if sweep.pairs:
        many = f"{sweep.pairs} pairs" if sweep.pairs > 1 else "one pair"
        yield (
            f"p and the {LEVEL:.0%} intervals cover the choice of seeds and text, and are corrected for {many} of "
            "recipes (Holm): at most one in 20 sweeps without any true difference shows one."
        )
        if sweep.baseline is not None:
            yield "Only differences from the baseline are tested, not those between the other recipes."


def _reference(sweep: Sweep) -> str:
    return "best" if sweep.baseline is None else "baseline"


def _reached_before_the_end(sweep: Sweep) -> bool:
    """Whether a recipe reached the lowest loss of another before its own end; else the columns say nothing."""
    others = [each for index, each in enumerate(sweep.recipes) if index != sweep.reference]
    steps = sweep.recipes[sweep.reference].cost.steps
    return any(
        (each.steps_to_reference or steps) < each.cost.steps or (each.reference_steps or steps) < steps
        for each in others
    )


def table(sweep: Sweep) -> list[list[str]]:
    """The header and a row per recipe, best first."""
    main, *others = sweep.sides
    name = _reference(sweep)
    differences, steps = [f"from {name}", "p"], [f"to {name}", f"{name} to it"]
    head = ["", "seeds", main, *differences, *others, "steps", *steps, "processor s", "FLOPs", *_metrics(sweep)]
    rows = [head, *(_row(sweep, index, label) for index, label in enumerate(labels(sweep)))]
    hidden = [] if _reached_before_the_end(sweep) else steps
    hidden += differences if len(sweep.recipes) == 1 else []
    shown = [column for column, title in enumerate(head) if title not in hidden]
    return [[row[column] for column in shown] for row in rows]


def _metrics(sweep: Sweep) -> list[str]:
    """The chosen metrics of the text that ranks the recipes."""
    return [name for name in sweep.recipes[0].metrics if name.startswith(f"{sweep.sides[0]} ")]


def _row(sweep: Sweep, index: int, name: str) -> list[str]:
    recipe = sweep.recipes[index]
    found = recipe.contrast
    if found is None:
        difference, p = (_reference(sweep) if index == sweep.reference else "one seed"), ""
    else:
        half = (found.high - found.low) / 2
        digits = decimals(half)
        difference = f"{found.difference:+.{digits}f} ± {half:.{digits}f}"
        p = f"{found.p:.2g}" if found.p >= 0.0001 else "< 0.0001"
    main, *others = (_mean_and_deviation(recipe.losses[side]) for side in sweep.sides)
    steps = [
        "–" if each is None else f"{each:,.0f}" for each in (recipe.steps_to_reference, recipe.reference_steps)
    ]
    cost = recipe.cost
    return [
        name, str(len(recipe.runs)), main, difference, p, *others,
        f"{cost.steps:,.0f}", *steps, f"{cost.processor_seconds:,.1f}", f"{cost.flops:.2e}",
        *(f"{recipe.metrics[each]:.4f}" for each in _metrics(sweep)),
    ]  # fmt: skip


def _mean_and_deviation(losses: list[float]) -> str:
    return f"{fmean(losses):.4f}" + (f" ± {stdev(losses):.4f}" if len(losses) > 1 else "")


def _value(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def as_text(sweep: Sweep) -> Iterator[str]:
    """Lines for a terminal."""
    yield from answer(sweep)
    yield ""
    named, *letters = legend(sweep) or [""]
    if named:
        yield f"{named}:"
        yield from (f"  {line}" for line in letters)
        yield ""
    yield from table_lines(table(sweep))
    yield ""
    yield from notes(sweep)
    for phrase in left_out(sweep):
        yield f"left out: {phrase}"


def as_markdown(sweep: Sweep) -> Iterator[str]:
    """Lines for a pull request or a notebook."""
    first, *others = answer(sweep)
    yield f"**{first}**"
    if others:
        yield ""
        yield " ".join(others)
    yield ""
    named, *letters = legend(sweep) or [""]
    if named:
        yield f"{named}:"
        yield ""
        yield from (f"- {line}" for line in letters)
        yield from [""] * bool(letters)
    yield from grid(table(sweep))
    yield ""
    yield " ".join(notes(sweep))
    if sweep.left_out:
        yield ""
    for phrase in left_out(sweep):
        yield f"- left out: {phrase}"


def as_json(sweep: Sweep) -> str:
    """Everything, for programs; a number that is not finite becomes null."""
    document = {
        "question": "sweep",
        "by": sweep.keys,
        "unit": sweep.unit,
        "answer": answer(sweep),
        **({} if sweep.baseline is None else {"baseline": sweep.recipes[sweep.baseline].values}),
        "winner": sweep.recipes[sweep.best].values if sweep.winner else None,
        "pairs": sweep.pairs,
        "recipes": [_as_dict(sweep, index, recipe) for index, recipe in enumerate(sweep.recipes)],
        "confounded": sweep.confounded,
        "left_out": sweep.left_out,
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str)


def _as_dict(sweep: Sweep, index: int, recipe: Recipe) -> dict[str, Any]:
    found, reference = recipe.contrast, _reference(sweep)
    return {
        "label": labels(sweep)[index],
        "values": recipe.values,
        "best": index == sweep.best,
        **{
            side: {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "losses": values}
            for side, values in recipe.losses.items()
        },
        f"from_{reference}": None if found is None else {**finite(asdict(found)), "differ": found.significant},
        f"steps_to_{reference}": recipe.steps_to_reference,
        f"{reference}_steps": recipe.reference_steps,
        **asdict(recipe.cost),
        "metrics": finite(recipe.metrics),
        "curve": recipe.curve,
        "runs": [{"name": run.result.name, "seed": run.result.seed} for run in recipe.runs],
    }
