"""compare: whether two checkpoints differ on a text, or two recipes that were trained with several seeds each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from pipeline.comparison.checkpoints import compare_checkpoints, most_changed
from pipeline.comparison.places import find_place
from pipeline.comparison.recipes import compare_recipes
from pipeline.comparison.runs import RunResult, comparable, pair, read_run, shared_sides
from pipeline.comparison.words import CHECKPOINTS, RECIPES, Comparison, as_json, as_markdown, as_text
from pipeline.core.errors import PipelineError
from pipeline.core.record import changed

if TYPE_CHECKING:
    from pipeline.core.paths import Paths

_SEED = "train.seed"


def run(paths: Paths, names: Sequence[str], against: Sequence[str], form: str) -> Iterator[str]:
    """The lines of a comparison.

    Args:
        paths: The project's.
        names: A and B; B is the working tree and A the last commit where they are not given. With `against`, the
            runs of A.
        against: The runs of B, each with another seed.
        form: "text", "markdown" or "json".

    Raises:
        PipelineError: a run cannot be found or read, or the runs may not be compared.
    """
    groups = (names, against) if against else [[name] for name in [*names, *("HEAD", ".")[len(names) :]]]
    first, second = ([read_run(find_place(paths.root, name)) for name in group] for group in groups)
    if against:
        _check_recipe("A", first)
        _check_recipe("B", second)
    comparison = _compare(RECIPES if against else CHECKPOINTS, first, second)
    if form == "json":
        return iter([as_json(comparison)])
    return as_markdown(comparison) if form == "markdown" else as_text(comparison)


def _compare(question: str, first: Sequence[RunResult], second: Sequence[RunResult]) -> Comparison:
    """Compares two runs (CHECKPOINTS) or two groups of runs, each with the params of its first run (RECIPES).

    Raises:
        PipelineError: the runs were evaluated on different texts.
    """
    runs = [*first, *second]
    unit = comparable(runs)
    paired = {side: pair(runs, side, unit) for side in shared_sides(runs)}
    params = changed(first[0].params, second[0].params)
    if question == RECIPES:
        params.pop(_SEED, None)
        sides = {side: compare_recipes(each, len(first)) for side, each in paired.items()}
    else:
        sides = {side: compare_checkpoints(each) for side, each in paired.items()}
    return Comparison(
        question=question,
        unit=unit,
        first=[_shown(run) for run in first],
        second=[_shown(run) for run in second],
        sides=sides,
        params=params,
        changes={side: most_changed(each) for side, each in paired.items()} if question == CHECKPOINTS else {},
    )


def _check_recipe(label: str, group: Sequence[RunResult]) -> None:
    """Raises PipelineError unless the group is several runs with the same params and different seeds."""
    if len(group) < 2:
        raise PipelineError(
            f"{label} is one run, from which nobody can tell what another seed would give: give two or more of "
            "each recipe, better three, or compare two checkpoints, without --against"
        )
    for other in group[1:]:
        for key, (mine, others) in changed(group[0].params, other.params).items():
            if key != _SEED:
                raise PipelineError(
                    f"{group[0].name} and {other.name} stand on the same side and are two recipes: {key} is "
                    f"{mine!r} and {others!r}; only {_SEED} may differ"
                )
    for run, other in combinations(group, 2):
        if _seed(run) == _seed(other) or run.documents == other.documents:  # elsewhere, last bits may differ
            raise PipelineError(
                f"{run.name} and {other.name} are the same model, one recipe with one seed, and count only once: "
                f"train each with another {_SEED}"
            )


def _shown(run: RunResult) -> dict[str, object]:
    about = run.about
    return {"name": run.name, "step": about["step"], "weights": about["weights"], "seed": _seed(run)}


def _seed(run: RunResult) -> object:
    return run.params["train"].get("seed")
