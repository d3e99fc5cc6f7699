"""Ranks the recipes of a sweep by loss, and tests which differences are significant.

A recipe is one combination of values of the sweep's params. Runs that differ only in the seed are repetitions.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import combinations
from string import ascii_uppercase
from typing import Any

from ruamel.yaml.error import YAMLError

from pipeline.comparison.checkpoints import Difference
from pipeline.comparison.recipes import compare_recipes
from pipeline.comparison.runs import (
    SEED,
    PairedScores,
    RunResult,
    common_unit,
    mean_metrics,
    pair_scores,
    read_run,
    shared_sides,
)
from pipeline.comparison.sources import RunSource
from pipeline.core.errors import DataError, PipelineError
from pipeline.core.params_diff import changed, effective
from pipeline.core.values import parse_values
from pipeline.core.yaml import yaml_values

ALPHA = 0.05
RUNNING = "running"
QUEUED = "queued"
"""Why a run is left out that is not complete yet."""
_REMEDY = "run `dvc repro`"

Curve = list[tuple[float, float]]
"""val.loss by step."""


@dataclass(frozen=True)
class Cost:
    """The cost of training: optimizer steps, processor seconds and floating-point operations of the model."""

    steps: float
    processor_seconds: float
    flops: float


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep: its evaluation results, loss curve and cost."""

    result: RunResult
    curve: Curve
    cost: Cost


@dataclass(frozen=True)
class Contrast:
    """The difference of a recipe from the reference: the best one, or the baseline.

    Attributes:
        difference: The mean loss of this recipe − that of the reference.
        low, high: The 95% interval, corrected like `p`: it excludes 0 exactly if `p` is below 0.05.
        p_value: The p-value of this pair alone.
        p: The p-value corrected for all pairs that were tested (Holm).
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
        runs: The runs, one per seed.
        losses: The losses of the runs by held-out text, in the order of `runs`.
        curve: The mean val.loss of the runs, at the steps that all of them have.
        cost: The mean cost of the runs.
        steps_to_reference: The first step at which `curve` reaches the minimum of the reference's curve, or None.
        reference_steps: The first step at which the reference's curve reaches the minimum of this one, or None.
        metrics: The means of the chosen metrics by text and name.
        contrast: The difference from the reference; None for itself, and if either has only one seed.
    """

    values: dict[str, Any]
    runs: list[SweepRun]
    losses: dict[str, list[float]]
    curve: Curve
    cost: Cost
    steps_to_reference: float | None
    reference_steps: float | None
    metrics: dict[str, float]
    contrast: Contrast | None


@dataclass(frozen=True)
class Sweep:
    """The recipes of a sweep and their ranking.

    Attributes:
        keys: The params of the sweep.
        unit: The unit of the losses.
        sides: The held-out texts that all runs have; the ranking uses the first one.
        recipes: The recipes, from the lowest mean loss to the highest.
        best: The index of the recipe with the lowest mean among those with several seeds (or among all, if none
            has).
        baseline: The index of the recipe that was given as the baseline, if any.
        pairs: The number of pairs of recipes for which p is corrected.
        confounded: Other params that differ between recipes, with the value of each recipe.
        left_out: The runs that are not used, by name, with the reason.
    """

    keys: list[str]
    unit: str
    sides: list[str]
    recipes: list[Recipe]
    best: int
    baseline: int | None
    pairs: int
    confounded: dict[str, list[Any]]
    left_out: dict[str, str]

    def unfinished(self, reason: str) -> int:
        """The number of runs that are left out for this reason, RUNNING or QUEUED."""
        return list(self.left_out.values()).count(reason)

    @property
    def reference(self) -> int:
        """The index of the recipe with which the others are compared: the baseline, or else the best one."""
        return self.best if self.baseline is None else self.baseline

    @property
    def winner(self) -> bool:
        """Whether the best recipe is significantly better than each of the others; not tested with a baseline."""
        others = [each for index, each in enumerate(self.recipes) if index != self.best]
        return (
            self.baseline is None
            and bool(others)
            and all(each.contrast is not None and each.contrast.significant for each in others)
        )


def read_sweep(
    sources: Sequence[RunSource],
    keys: Sequence[str],
    left_out: Mapping[str, str],
    baseline: RunSource | None = None,
) -> Sweep:
    """Reads the runs of a sweep and ranks its recipes. Runs that cannot be read are added to `left_out`.

    With `baseline`, the recipes are compared with the one that has the values of this run, or, if it is not one of
    `sources`, those in its params.yaml.

    Raises:
        PipelineError: no run can be read, the runs are not comparable, no run has one of the `keys`, runs of one
            recipe differ in more than the seed, or no run has the recipe of `baseline`.
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
    reference = None if baseline is None else _find_recipe(baseline, groups, keys)
    return _rank(groups, keys, unit, paired, left_out, reference)


def _find_recipe(baseline: RunSource, groups: Sequence[Sequence[SweepRun]], keys: Sequence[str]) -> int:
    """The index of the recipe of `baseline`."""
    for index, group in enumerate(groups):
        if any(run.result.name == baseline.name for run in group):
            return index
    try:
        params = effective(yaml_values(baseline.read("params.yaml")))
    except (AttributeError, ValueError, YAMLError):
        raise DataError(f"{baseline.name}: params.yaml is not valid YAML with sections") from None
    wanted = {key: _lookup(params, key) for key in keys}
    found = [index for index, group in enumerate(groups) if _values(group[0].result, keys) == wanted]
    if not found:
        there_are = "; ".join(named_values(_values(group[0].result, keys)) for group in groups)
        raise PipelineError(
            f"the baseline {baseline.name} has {named_values(wanted)}, and no run of the sweep has (there are: "
            f"{there_are}): run it with several seeds, or give another run as --baseline"
        )
    return found[0]


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
    """Groups the runs by recipe. Runs that repeat a seed are added to `left_out`."""
    for key in keys:
        if all(_value(run.result, key) is None for run in runs):
            raise PipelineError(f"no run was trained with a param {key}: {_differing_params(runs)}")
    groups: dict[str, list[SweepRun]] = {}
    for run in runs:
        group = groups.setdefault(json.dumps(_values(run.result, keys), sort_keys=True, default=str), [])
        first = group[0].result if group else run.result
        others = [key for key in changed(first.params, run.result.params) if key != SEED]
        if others:
            named = named_values(_values(first, keys))
            more = " ".join(f"--by {key}" for key in others)
            raise PipelineError(
                f"{first.name} and {run.result.name} both have {named}, but differ in {', '.join(others)}, so "
                f"they are no repetitions: add {more}, or name the runs to use"
            )
        same = [
            each.result.name
            for each in group
            if each.result.seed == run.result.seed or each.result.documents == run.result.documents
        ]
        if same:
            left_out[run.result.name] = f"the same model as {same[0]} (same recipe and seed)"
        else:
            group.append(run)
    return list(groups.values())


def _differing_params(runs: Sequence[SweepRun]) -> str:
    found = dict.fromkeys(
        key for run in runs[1:] for key in changed(runs[0].result.params, run.result.params) if key != SEED
    )
    return f"the runs differ in {', '.join(found)}" if found else f"the runs differ only in {SEED}"


def _values(run: RunResult, keys: Sequence[str]) -> dict[str, Any]:
    return {key: _value(run, key) for key in keys}


def _value(run: RunResult, key: str) -> Any:
    """The value of a param or a section; None if the run does not have it."""
    return _lookup(effective(run.params), key)


def _lookup(params: Mapping[str, Any], key: str) -> Any:
    value: Any = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _rank(
    groups: list[list[SweepRun]],
    keys: Sequence[str],
    unit: str,
    paired: Mapping[str, PairedScores],
    left_out: dict[str, str],
    baseline: int | None,
) -> Sweep:
    """`baseline`: the index of the baseline in `groups`."""
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
    reference = best if baseline is None else order.index(baseline)
    contrasts, pairs = _contrasts(paired[sides[0]], rows, reference, baseline is not None)
    curves = [_mean_curve([run.curve for run in group]) for group in groups]
    metrics = mean_metrics([[run.result for run in group] for group in groups])
    recipes = [
        Recipe(
            values=_values(group[0].result, keys),
            runs=group,
            losses={side: paired[side].losses[run_rows].tolist() for side in sides},
            curve=curve,
            cost=_mean_cost([run.cost for run in group]),
            steps_to_reference=_first_step_as_low(curve, curves[reference]),
            reference_steps=_first_step_as_low(curves[reference], curve),
            metrics=metrics[index],
            contrast=contrasts.get(index),
        )
        for index, (group, run_rows, curve) in enumerate(zip(groups, rows, curves, strict=True))
    ]
    return Sweep(
        keys=list(keys),
        unit=unit,
        sides=sides,
        recipes=recipes,
        best=best,
        baseline=None if baseline is None else reference,
        pairs=pairs,
        confounded=_confounded(groups, keys),
        left_out=left_out,
    )


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    return Cost(*(math.fsum(each) / len(costs) for each in zip(*map(astuple, costs), strict=True)))


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of the curves at the steps that all of them have."""
    tables = [dict(curve) for curve in curves]
    steps = [step for step, _ in curves[0] if all(step in table for table in tables)]
    return [(step, math.fsum(table[step] for table in tables) / len(tables)) for step in steps]


def _first_step_as_low(curve: Curve, other: Curve) -> float | None:
    """The first step at which `curve` reaches the minimum of `other`, or None."""
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


def _contrasts(
    paired: PairedScores, rows: Sequence[Sequence[int]], reference: int, baseline: bool = False
) -> tuple[dict[int, Contrast], int]:
    """The contrast of each recipe with several seeds to the reference, by index, and the number of pairs tested.

    The pairs are tested with `compare_recipes`, and their p-values are corrected by Holm's step-down procedure
    (Holm 1979, "A simple sequentially rejective multiple test procedure"). All pairs of recipes count, because the
    best one was chosen by the same losses; with a `baseline`, which was not, only its own. For sorted p-values
    p_1 ≤ … ≤ p_m, the corrected ones are max_{j ≤ i} (m − j + 1) p_j, at most 1.
    """
    several = [index for index, recipe_rows in enumerate(rows) if len(recipe_rows) > 1]

    def differ(first: int, second: int, factor: float = 1.0) -> Difference:
        return compare_recipes(paired.only([*rows[first], *rows[second]]), len(rows[first]), ALPHA / factor)

    pairs = [pair for pair in combinations(several, 2) if not baseline or reference in pair]
    tested = {pair: differ(*pair).p_value for pair in pairs}
    corrected = holm(list(tested.values()))
    found = {}
    for (names, p_value), p in zip(tested.items(), corrected, strict=True):
        if reference in names:
            other = names[names[0] == reference]
            factor = p / p_value if p_value else len(tested)
            contrast = differ(reference, other, factor)
            found[other] = Contrast(contrast.difference, contrast.low, contrast.high, p_value, min(p, 1.0))
    return found, len(tested)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected by Holm's procedure, without the limit of 1."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = largest
    return corrected


_LONGEST_LABEL = 26
"""With it the label, the seeds, the loss, the difference and p fit into 80 columns."""


def labels(sweep: Sweep) -> list[str]:
    """A short label for each recipe: `lr=0.02` if the sweep has one param, the values if it has several, and a
    letter if that would be long; `legend` says what stands for what."""
    found = _labels_of_values(sweep)
    return found if max(map(len, found)) <= _LONGEST_LABEL else [_letter(place) for place in range(len(found))]


def legend(sweep: Sweep) -> list[str]:
    """The params whose values the labels show, then a line for each letter; empty if the labels need none."""
    names, values = labels(sweep), _labels_of_values(sweep)
    lettered = names != values
    if len(sweep.keys) == 1 and not lettered:
        return []
    lines = [f"{name}: {value}" for name, value in zip(names, values, strict=True)] if lettered else []
    return [f"Recipes by {', '.join(sweep.keys)}", *lines]


def named_values(values: Mapping[str, Any]) -> str:
    """The params of a recipe with their values, such as `train.lr=0.02, train.warmup=5`."""
    return ", ".join(f"{key}={_format_value(value)}" for key, value in values.items())


def _labels_of_values(sweep: Sweep) -> list[str]:
    if len(sweep.keys) == 1:
        short = sweep.keys[0].rpartition(".")[2]
        return [named_values({short: value}) for recipe in sweep.recipes for value in recipe.values.values()]
    return [", ".join(map(_format_value, recipe.values.values())) for recipe in sweep.recipes]


def _letter(place: int) -> str:
    """A, B, …, Z, A1, B1, …"""
    again, letter = divmod(place, len(ascii_uppercase))
    return f"{ascii_uppercase[letter]}{again or ''}"


def _format_value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "–" if value is None else json.dumps(value, ensure_ascii=False, default=str)
