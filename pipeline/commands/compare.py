"""compare: tests whether two checkpoints, two recipes with several seeds each, or the recipes of a sweep differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from pipeline.comparison import sweep_rendering
from pipeline.comparison.checkpoints import compare_checkpoints, most_changed
from pipeline.comparison.recipes import compare_recipes
from pipeline.comparison.rendering import CHECKPOINTS, RECIPES, Comparison, as_json, as_markdown, as_text
from pipeline.comparison.runs import SEED, RunResult, common_unit, mean_metrics, pair_scores, read_run, shared_sides
from pipeline.comparison.sources import RunSource, find_experiments, find_source
from pipeline.comparison.sweep import QUEUED, RUNNING, read_sweep
from pipeline.comparison.tasks import compare_tasks
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_atomically
from pipeline.core.params_diff import changed

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.paths import Paths


def run(
    paths: Paths, names: Sequence[str], against: Sequence[str], form: str, page: Path | None = None
) -> Iterator[str]:
    """Compares two runs or two recipes; returns the lines to print.

    Args:
        paths: The paths of the project.
        names: A and B; default: the last commit and the working tree. With `against`: the runs of recipe A.
        against: The runs of recipe B, each with a different seed.
        form: "text", "markdown" or "json".
        page: The file for an HTML page with the curves of the runs; None for no page.

    Raises:
        PipelineError: a run cannot be found or read, or the runs are not comparable.
    """
    groups = (names, against) if against else [[name] for name in [*names, *("HEAD", ".")[len(names) :]]]
    sources = [[find_source(paths.root, name) for name in group] for group in groups]
    first, second = ([read_run(source) for source in group] for group in sources)
    if against:
        _check_recipe("A", first)
        _check_recipe("B", second)
    comparison = _compare(RECIPES if against else CHECKPOINTS, first, second)
    if page is not None:
        from pipeline.comparison.comparison_page import read_curves, render

        write_atomically(page, render(comparison, *([read_curves(each) for each in group] for group in sources)))
    if form == "json":
        return iter([as_json(comparison)])
    return as_markdown(comparison) if form == "markdown" else as_text(comparison)


def run_sweep(
    paths: Paths,
    names: Sequence[str],
    keys: Sequence[str],
    form: str,
    page: Path | None,
    baseline: str | None = None,
) -> Iterator[str]:
    """Ranks the recipes of a sweep; returns the lines to print.

    Args:
        paths: The paths of the project.
        names: Runs. A git revision with DVC experiments based on it stands for these. Default: the last commit.
        keys: The params whose values define a recipe.
        form: "text", "markdown" or "json".
        page: Where to write an HTML page as well.
        baseline: A run or a revision. The recipes are compared with the one that has its values, not with the best.

    Raises:
        PipelineError: a run cannot be found, no run can be read, or the runs are not comparable.
    """
    sources: list[RunSource] = []
    left_out: dict[str, str] = {}
    for name in names or ["HEAD"]:
        found = find_experiments(paths.root, name)
        if found is None and not names:
            raise PipelineError(
                "no DVC experiment is based on the last commit: run some "
                f"(`dvc exp run --queue -S {keys[0]}=…`), or name runs or the commit that they are based on"
            )
        sources += found.done if found else [find_source(paths.root, name)]
        if found:
            left_out |= {each: f"failed, see `dvc queue logs {each}`" for each in found.failed}
            left_out |= dict.fromkeys(found.running, RUNNING) | dict.fromkeys(found.waiting, QUEUED)
    if not sources:
        what = "; ".join(f"{name} ({why})" for name, why in left_out.items())
        raise PipelineError(f"no experiment is complete yet: {what}: `dvc queue status` shows the queue")
    sweep = read_sweep(sources, keys, left_out, None if baseline is None else find_source(paths.root, baseline))
    if page is not None and len(sweep.recipes) == 1:
        raise PipelineError(f"{sweep_rendering.answer(sweep)[0].removesuffix('.')}, so {page} is not written")
    if page is not None:
        from pipeline.comparison.sweep_page import render

        write_atomically(page, render(sweep))
    if form == "json":
        return iter([sweep_rendering.as_json(sweep)])
    return sweep_rendering.as_markdown(sweep) if form == "markdown" else sweep_rendering.as_text(sweep)


def _compare(question: str, first: Sequence[RunResult], second: Sequence[RunResult]) -> Comparison:
    """Compares two runs (CHECKPOINTS), or two groups of runs with the same params each (RECIPES).

    Raises:
        PipelineError: the runs were evaluated on different texts.
    """
    runs = [*first, *second]
    unit = common_unit(runs)
    paired = {side: pair_scores(runs, side, unit) for side in shared_sides(runs)}
    params = changed(first[0].params, second[0].params)
    if question == RECIPES:
        params.pop(SEED, None)
        sides = {side: compare_recipes(each, len(first)) for side, each in paired.items()}
    else:
        sides = {side: compare_checkpoints(each) for side, each in paired.items()}
    ours, theirs = mean_metrics([first, second])
    return Comparison(
        question=question,
        unit=unit,
        first=[_run_facts(run) for run in first],
        second=[_run_facts(run) for run in second],
        sides=sides,
        params=params,
        changes={side: most_changed(each) for side, each in paired.items()} if question == CHECKPOINTS else {},
        tasks=compare_tasks(first[0], second[0]) if question == CHECKPOINTS else [],
        metrics={name: (value, theirs[name]) for name, value in ours.items()},
    )


def _check_recipe(label: str, group: Sequence[RunResult]) -> None:
    """Raises PipelineError unless the group has two or more runs with equal params and different seeds."""
    if len(group) < 2:
        raise PipelineError(
            f"recipe {label} has one run, which does not show the effect of the seed: give two or more runs of "
            "each recipe (three are better), or compare two checkpoints, without --against"
        )
    for other in group[1:]:
        for key, (mine, others) in changed(group[0].params, other.params).items():
            if key != SEED:
                raise PipelineError(
                    f"{group[0].name} and {other.name} are given as one recipe, but {key} is {mine!r} and "
                    f"{others!r}: only {SEED} may differ"
                )
    for run, other in combinations(group, 2):
        # The same seed on another machine may give other last bits, so equal seeds are the same model, too.
        if run.seed == other.seed or run.documents == other.documents:
            raise PipelineError(
                f"{run.name} and {other.name} are the same model (same recipe and seed): train each run with a "
                f"different {SEED}"
            )


def _run_facts(run: RunResult) -> dict[str, object]:
    about = run.about
    return {"name": run.name, "step": about["step"], "weights": about["weights"], "seed": run.seed}
