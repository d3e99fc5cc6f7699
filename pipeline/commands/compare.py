"""compare: whether two checkpoints differ on a text, or two recipes that were trained with several seeds each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from pipeline.comparison.checkpoints import compare_checkpoints, most_changed
from pipeline.comparison.places import find_place
from pipeline.comparison.recipes import compare_recipes
from pipeline.comparison.runs import Run, comparable, differing, pair, read_run, shared_sides
from pipeline.comparison.words import CHECKPOINTS, RECIPES, Comparison, as_json, as_markdown, as_text
from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.core.paths import Paths

_SEED = "train.seed"
_WEIGHTS = "evaluate.weights"
_RECIPE = ("tokenize", "split", "model", "train")


def run(paths: Paths, names: Sequence[str], against: Sequence[str], form: str) -> Iterator[str]:
    """The lines of a comparison.

    Args:
        paths: The project's.
        names: A and B; A alone is held against the working tree, and without any, it is the last commit. With
            `against`, the runs of A.
        against: The runs of B, each with another seed.
        form: "text", "markdown" or "json".

    Raises:
        PipelineError: a run cannot be found or read, or the runs may not be compared.
    """
    if against:
        comparison = recipes(*([_read(paths, name) for name in group] for group in (names, against)))
    else:
        first, second = [*names, *("HEAD", ".")[len(names) :]]
        comparison = checkpoints(_read(paths, first), _read(paths, second))
    if form == "json":
        return iter([as_json(comparison)])
    return as_markdown(comparison) if form == "markdown" else as_text(comparison)


def _read(paths: Paths, name: str) -> Run:
    return read_run(find_place(paths.root, name))


def checkpoints(first: Run, second: Run) -> Comparison:
    """Whether these two differ on the text that both were evaluated on."""
    unit = comparable([first, second])
    paired = {side: pair([first, second], side, unit) for side in shared_sides([first, second])}
    return Comparison(
        CHECKPOINTS,
        unit,
        [_shown(first)],
        [_shown(second)],
        {side: compare_checkpoints(each) for side, each in paired.items()},
        differing(first.params, second.params),
        {side: most_changed(each) for side, each in paired.items()},
    )


def recipes(first: Sequence[Run], second: Sequence[Run]) -> Comparison:
    """Whether the params of the first runs are better than those of the second, whatever the seed."""
    for label, group in (("A", first), ("B", second)):
        if len(group) < 2:
            raise PipelineError(
                f"{label} is one run, from which nobody can tell what another seed would give: give two or more of "
                "each recipe, better three, or compare two checkpoints, without --against"
            )
        _check_one_recipe(group)
        _check_different(group)
    runs = [*first, *second]
    unit = comparable(runs)
    paired = {side: pair(runs, side, unit) for side in shared_sides(runs)}
    params = differing(first[0].params, second[0].params)
    params.pop(_SEED, None)
    return Comparison(
        RECIPES,
        unit,
        [_shown(run) for run in first],
        [_shown(run) for run in second],
        {side: compare_recipes(each, len(first)) for side, each in paired.items()},
        params,
        {},
    )


def _check_one_recipe(group: Sequence[Run]) -> None:
    for other in group[1:]:
        for key, (mine, others) in differing(group[0].params, other.params).items():
            if (key.split(".")[0] in _RECIPE or key == _WEIGHTS) and key != _SEED:
                raise PipelineError(
                    f"{group[0].name} and {other.name} stand on the same side and are two recipes: {key} is "
                    f"{mine!r} and {others!r}; only {_SEED} may differ"
                )


def _check_different(group: Sequence[Run]) -> None:
    for mine, other in combinations(group, 2):
        if _seed(mine) == _seed(other) or mine.documents == other.documents:  # elsewhere, last bits may differ
            raise PipelineError(
                f"{mine.name} and {other.name} are the same model, one recipe with one seed, and count only once: "
                f"train each with another {_SEED}"
            )


def _shown(run: Run) -> dict[str, object]:
    about = run.about
    return {"name": run.name, "step": about["step"], "weights": about["weights"], "seed": _seed(run)}


def _seed(run: Run) -> object:
    train = run.params.get("train")
    return train.get("seed") if isinstance(train, dict) else None
