"""What a sweep says: its recipes in the order of their losses, and which of the differences are more than chance.

A recipe is the values of the params that the sweep is about; runs that differ in the seed alone are repetitions.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pipeline.comparison.checkpoints import Difference
from pipeline.comparison.recipes import compare_recipes
from pipeline.comparison.runs import SEED, PairedScores, RunResult, common_unit, pair_scores, read_run, shared_sides
from pipeline.comparison.sources import RunSource
from pipeline.core.errors import DataError, PipelineError
from pipeline.core.params_diff import changed, effective
from pipeline.core.values import parse_values

ALPHA = 0.05
_REMEDY = "run `dvc repro`"

Curve = list[tuple[float, float]]
"""val.loss by step."""


@dataclass(frozen=True)
class Cost:
    """What training took, the mean of a recipe's runs: optimizer steps, processor seconds and floating-point
    operations of the model."""

    steps: float
    processor_seconds: float
    flops: float


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep: what evaluation and training left of it."""

    result: RunResult
    curve: Curve
    cost: Cost


@dataclass(frozen=True)
class Contrast:
    """How a recipe differs from the best one.

    Attributes:
        difference: This recipe's mean loss − the best one's.
        low, high: Its 95% interval, corrected as p is: it leaves 0 out where `p` is below 0.05.
        p_value: How likely so large a difference would be if there were none, for this pair alone.
        p: The same, corrected for all pairs of the sweep (Holm).
    """

    difference: float
    low: float
    high: float
    p_value: float
    p: float

    @property
    def significant(self) -> bool:
        return self.p < ALPHA


@dataclass(frozen=True)
class Recipe:
    """A recipe of a sweep.

    Attributes:
        values: The values of the sweep's params, by name.
        runs: Its runs, one for each seed.
        losses: Their losses by side, in the order of `runs`.
        curve: The mean of their val.loss by step, where all have one.
        cost: The mean of what they took.
        steps_to_best: The first step at which `curve` is as low as the best recipe's ever is; None: not reached.
        best_steps: The first step at which the best recipe's curve is as low as this one's ever is.
        contrast: How it differs from the best recipe; None of that one itself, and where one of both has one seed.
    """

    values: dict[str, Any]
    runs: list[SweepRun]
    losses: dict[str, list[float]]
    curve: Curve
    cost: Cost
    steps_to_best: float | None
    best_steps: float | None
    contrast: Contrast | None


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        keys: The params that it is about.
        unit: What the losses are in.
        sides: The texts that all runs were evaluated on; the first decides.
        recipes: From the lowest mean loss to the highest.
        best: The index of the recipe that the others are compared with: the lowest mean of those with several
            seeds, or of all.
        pairs: How many pairs of recipes p is corrected for.
        confounded: Other params that differ between recipes, with the value of each recipe.
        left_out: The runs that do not count, by name, and why.
    """

    keys: list[str]
    unit: str
    sides: list[str]
    recipes: list[Recipe]
    best: int
    pairs: int
    confounded: dict[str, list[Any]]
    left_out: dict[str, str]

    @property
    def winner(self) -> bool:
        """Whether the best recipe is better than each of the others."""
        others = [each for index, each in enumerate(self.recipes) if index != self.best]
        return bool(others) and all(each.contrast is not None and each.contrast.significant for each in others)


def read_sweep(sources: Sequence[RunSource], keys: Sequence[str], left_out: Mapping[str, str]) -> Sweep:
    """Reads the runs of a sweep and ranks its recipes. Runs that cannot be read are left out, by name.

    Raises:
        PipelineError: no run can be read, they may not be compared, no run has one of the `keys`, or runs of one
            recipe differ in more than their seed.
    """
    runs, left_out = [], dict(left_out)
    for source in sources:
        try:
            runs.append(_read(source))
        except PipelineError as error:
            left_out[source.name] = str(error).removeprefix(f"{source.name}: ")
    if not runs:
        given = {source.name for source in sources}
        name, why = next((name, why) for name, why in left_out.items() if name in given)
        raise PipelineError(f"none of the runs can be read: {name}: {why}")
    groups = _group_by_recipe(runs, keys, left_out)
    grouped = [run for group in groups for run in group]
    results = [run.result for run in grouped]
    unit = common_unit(results)
    sides = shared_sides(results)
    paired = {side: pair_scores(results, side, unit) for side in sides}
    return _rank(groups, keys, unit, paired, left_out)


def _read(source: RunSource) -> SweepRun:
    path = "metrics/performance.json"
    spent = parse_values(source.read(path), dict[str, float], f"{source.name}: {path}", _REMEDY)
    path = "metrics/history.tsv"
    rows = list(csv.DictReader(source.read(path).splitlines(), delimiter="\t"))
    try:
        curve = [(float(row["step"]), float(row["val.loss"])) for row in rows if row["val.loss"]]
        cost = Cost(
            float(rows[-1]["step"]), spent["processor_seconds"], spent["model_flops_per_sec"] * spent["seconds"]
        )
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(f"{source.name}: {path} or performance.json is damaged: {_REMEDY} there") from None
    return SweepRun(read_run(source), curve, cost)


def _group_by_recipe(
    runs: Sequence[SweepRun], keys: Sequence[str], left_out: dict[str, str]
) -> list[list[SweepRun]]:
    """The runs by recipe; what counts twice goes to `left_out`."""
    for key in keys:
        if all(_value(run.result, key) is None for run in runs):
            raise PipelineError(f"no run was trained with a param {key}: {_differing_params(runs)}")
    groups: dict[str, list[SweepRun]] = {}
    for run in runs:
        group = groups.setdefault(json.dumps(_values(run.result, keys), sort_keys=True, default=str), [])
        first = group[0].result if group else run.result
        others = [key for key in changed(first.params, run.result.params) if key != SEED]
        if others:
            named = ", ".join(f"{key}={_value(first, key)!r}" for key in keys)
            more = " ".join(f"--by {key}" for key in others)
            raise PipelineError(
                f"{first.name} and {run.result.name} both have {named} and differ in {', '.join(others)}, which is "
                f"no repetition: add {more}, or name the runs that count"
            )
        same = [
            each.result.name
            for each in group
            if each.result.seed == run.result.seed or each.result.documents == run.result.documents
        ]
        if same:
            left_out[run.result.name] = f"the same model as {same[0]}: one recipe with one seed"
        else:
            group.append(run)
    return list(groups.values())


def _differing_params(runs: Sequence[SweepRun]) -> str:
    found = dict.fromkeys(
        key for run in runs[1:] for key in changed(runs[0].result.params, run.result.params) if key != SEED
    )
    return f"the runs differ in {', '.join(found)}" if found else f"the runs differ in nothing but {SEED}"


def _values(run: RunResult, keys: Sequence[str]) -> dict[str, Any]:
    return {key: _value(run, key) for key in keys}


def _value(run: RunResult, key: str) -> Any:
    """The value of a param, or of a section; None where the run was made without it."""
    value: Any = effective(run.params)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _rank(
    groups: list[list[SweepRun]],
    keys: Sequence[str],
    unit: str,
    paired: Mapping[str, PairedScores],
    left_out: dict[str, str],
) -> Sweep:
    sides = list(paired)
    rows, start = [], 0
    for group in groups:
        rows.append(list(range(start, start + len(group))))
        start += len(group)
    losses = paired[sides[0]].losses
    order = sorted(range(len(groups)), key=lambda index: float(losses[rows[index]].mean()))
    groups, rows = [groups[index] for index in order], [rows[index] for index in order]
    several = [index for index, group in enumerate(groups) if len(group) > 1]
    best = several[0] if several else 0
    contrasts, pairs = _contrasts(paired[sides[0]], rows, best)
    curves = [_mean_curve([run.curve for run in group]) for group in groups]
    recipes = [
        Recipe(
            values=_values(group[0].result, keys),
            runs=group,
            losses={side: paired[side].losses[run_rows].tolist() for side in sides},
            curve=curve,
            cost=Cost(*(math.fsum(each) / len(group) for each in zip(*map(_costs, group), strict=True))),
            steps_to_best=_first_step_as_low(curve, curves[best]),
            best_steps=_first_step_as_low(curves[best], curve),
            contrast=contrasts.get(index),
        )
        for index, (group, run_rows, curve) in enumerate(zip(groups, rows, curves, strict=True))
    ]
    return Sweep(list(keys), unit, sides, recipes, best, pairs, _confounded(groups, keys), left_out)


def _costs(run: SweepRun) -> tuple[float, float, float]:
    return run.cost.steps, run.cost.processor_seconds, run.cost.flops


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean at the steps that all have."""
    tables = [dict(curve) for curve in curves]
    steps = [step for step, _ in curves[0] if all(step in table for table in tables)]
    return [(step, math.fsum(table[step] for table in tables) / len(tables)) for step in steps]


def _first_step_as_low(curve: Curve, other: Curve) -> float | None:
    """The first step at which `curve` is as low as `other` ever is; None where it never is."""
    target = min((loss for _, loss in other), default=-math.inf)
    return next((step for step, loss in curve if loss <= target), None)


def _confounded(groups: Sequence[Sequence[SweepRun]], keys: Sequence[str]) -> dict[str, list[Any]]:
    first = groups[0][0].result
    names = dict.fromkeys(name for group in groups for name in changed(first.params, group[0].result.params))
    return {
        name: [_value(group[0].result, name) for group in groups]
        for name in names
        if name != SEED and not any(name == key or name.startswith(f"{key}.") for key in keys)
    }


def _contrasts(paired: PairedScores, rows: Sequence[Sequence[int]], best: int) -> tuple[dict[int, Contrast], int]:
    """How each recipe with several seeds differs from the best one, by index, and how many pairs were tested.

    Every pair is tested as `compare_recipes` does it, and p corrected for all of them by Holm's step-down procedure
    (Holm 1979, "A simple sequentially rejective multiple test procedure"): which recipe is the best was read off
    the same losses, so that any pair could have become the one that is reported. Of the sorted p-values
    p_1 ≤ … ≤ p_m the corrected ones are max_{j ≤ i} (m − j + 1) p_j, at most 1.
    """
    several = [index for index, recipe_rows in enumerate(rows) if len(recipe_rows) > 1]

    def differ(first: int, second: int, factor: float = 1.0) -> Difference:
        return compare_recipes(paired.only([*rows[first], *rows[second]]), len(rows[first]), ALPHA / factor)

    tested = {(one, other): differ(one, other).p_value for one, other in combinations(several, 2)}
    corrected = holm(list(tested.values()))
    found = {}
    for (names, p_value), p in zip(tested.items(), corrected, strict=True):
        if best in names:
            other = names[names[0] == best]
            factor = p / p_value if p_value else len(tested)
            contrast = differ(best, other, factor)
            found[other] = Contrast(contrast.difference, contrast.low, contrast.high, p_value, min(p, 1.0))
    return found, len(tested)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for their number by Holm's procedure; not yet limited to 1."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = largest
    return corrected


def labels(sweep: Sweep) -> Iterator[str]:
    """A recipe's values in short: the last part of each param's name where that tells them apart."""
    short = [key.rpartition(".")[2] for key in sweep.keys]
    names = short if len(set(short)) == len(short) else sweep.keys
    for recipe in sweep.recipes:
        yield "  ".join(
            f"{name}={_format_value(value)}" for name, value in zip(names, recipe.values.values(), strict=True)
        )


def _format_value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)
