"""Comparisons keep their significance level: equal runs are called equal 19 times in 20, and differences are
found."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from made_runs import simulated

from pipeline.comparison import checkpoints
from pipeline.comparison.checkpoints import compare_checkpoints, most_changed
from pipeline.comparison.recipes import compare_recipes

SEEDS = [(3, 3), (5, 5), (2, 4)]
SCENES = {
    "seeds shift the whole loss": (0.02, 0.0, 0.0),
    "seeds shift each document": (0.0, 0.2, 0.0),
    "both": (0.02, 0.05, 0.0),
    "recipes suit different documents": (0.02, 0.05, 0.1),
}


def called_different(
    tries: int, seeds: tuple[int, int], units: int, scene: tuple[float, float, float], effect: float = 0.0
) -> float:
    """The share of comparisons with a significant difference."""
    generator = np.random.default_rng(1)
    found = (compare_recipes(simulated(generator, seeds, units, *scene, effect), seeds[0]) for _ in range(tries))
    return sum(each.significant for each in found) / tries


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
@pytest.mark.parametrize("scene", SCENES)
def test_recipes_that_differ_by_seed_alone_are_called_equal_19_times_in_20(
    seeds: tuple[int, int], scene: str
) -> None:
    # Of 300 tries with a chance of 0.05 each, 27 or more come up once in a thousand.
    assert called_different(300, seeds, 40, SCENES[scene]) < 27 / 300


@pytest.mark.long
@pytest.mark.parametrize("units", [16, 31, 128])
@pytest.mark.parametrize("seeds", [*SEEDS, (2, 2), (10, 10)], ids=str)
@pytest.mark.parametrize("scene", SCENES)
def test_so_are_they_in_2000_tries(seeds: tuple[int, int], scene: str, units: int) -> None:
    # Of 2,000 tries with a chance of 0.05 each, more than 130 come up once in a thousand.
    assert called_different(2000, seeds, units, SCENES[scene]) <= 130 / 2000


@pytest.mark.parametrize(("seeds", "least"), [((3, 3), 0.85), ((5, 5), 0.99)], ids=str)
def test_a_planted_difference_of_five_seed_deviations_is_found(seeds: tuple[int, int], least: float) -> None:
    assert called_different(200, seeds, 40, SCENES["both"], effect=0.1) >= least


def test_an_interval_holds_the_recipes_difference() -> None:
    generator, held = np.random.default_rng(2), 0
    for _ in range(300):
        found = compare_recipes(simulated(generator, (3, 3), 40, 0.02, 0.05, 0.1, effect=0.3), 3)
        held += found.low <= 0.3 <= found.high
    assert held / 300 > 1 - 27 / 300


def test_checkpoints_of_one_loss_are_called_equal_19_times_in_20(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "RESAMPLES", 1000)
    monkeypatch.setattr(checkpoints, "resampled", lambda values, plain=checkpoints.resampled: plain(values, 1000))
    generator = np.random.default_rng(3)
    found = [compare_checkpoints(simulated(generator, (1, 1), 40, 0.0, 0.1)) for _ in range(300)]
    assert sum(each.significant for each in found) < 27
    assert sum(each.low > 0 or each.high < 0 for each in found) < 27
    assert sum(each.p_value < 0.05 for each in found) < 27


def test_what_one_checkpoint_is_better_by_is_found_on_the_same_documents() -> None:
    # Documents differ by 0.5; only in pairs can 0.02 be seen.
    found = compare_checkpoints(simulated(np.random.default_rng(4), (1, 1), 100, 0.0, 0.02, effect=0.02))
    assert found.significant
    assert found.low < found.difference < found.high
    assert found.difference == pytest.approx(0.02, abs=0.01)
    assert found.p_value < 0.001


def test_a_seeds_luck_is_a_difference_of_checkpoints_and_none_of_recipes() -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        paired = simulated(generator, (3, 3), 100, 0.05, 0.01)
        one = replace(paired, nats=paired.nats[[0, 3]], sizes=paired.sizes[[0, 3]])
        if compare_checkpoints(one).significant and not compare_recipes(paired, 3).significant:
            return
    pytest.fail("no such case in 20")


def test_the_very_same_scores_do_not_differ() -> None:
    paired = simulated(np.random.default_rng(6), (1, 1), 40, 0.0, 0.1)
    same = replace(paired, nats=paired.nats[[0, 0]])
    found = compare_checkpoints(same)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert most_changed(same) == []


def test_the_documents_parts_add_up_to_the_difference() -> None:
    paired = simulated(np.random.default_rng(7), (1, 1), 40, 0.0, 0.1)
    parts = most_changed(paired, 40)
    assert sum(each.contribution for each in parts) == pytest.approx(compare_checkpoints(paired).difference)
    assert abs(parts[0].contribution) == max(abs(each.contribution) for each in parts)


def test_a_great_many_documents_are_compared_in_little_memory() -> None:
    paired = simulated(np.random.default_rng(8), (1, 1), 50_000, 0.0, 0.1, effect=0.01)
    tracemalloc.start()
    assert compare_checkpoints(paired).significant
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


def test_one_piece_of_text_gives_no_verdict_on_recipes() -> None:
    paired = simulated(np.random.default_rng(9), (3, 3), 1, 0.01, 0.01, effect=1.0)
    assert not compare_recipes(paired, 3).significant
