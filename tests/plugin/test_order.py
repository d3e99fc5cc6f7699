"""The permutation that shuffles the training data: a bijection of any size, as random as a shuffle."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from itertools import pairwise, permutations, product
from math import sqrt

import pytest

from pipeline.plugin.order import Source, permuted

SIZES = [1, 2, 3, 7, 64, 1000, *(2**k + d for k in (1, 2, 4, 8, 13) for d in (-1, 1))]


@pytest.mark.parametrize("size", SIZES)
def test_it_is_a_permutation(size: int) -> None:
    for epoch in range(3):
        assert sorted(permuted(number, size, 1, epoch) for number in range(size)) == list(range(size))


@pytest.mark.parametrize("number", [-1, 5])
def test_a_number_outside_is_an_error(number: int) -> None:
    with pytest.raises(IndexError, match=f"{number} is not one of 0 … 4"):
        permuted(number, 5)


def test_seeds_epochs_and_sources_have_orders_of_their_own() -> None:
    keys = [(seed, epoch, name) for seed in range(5) for epoch in range(5) for name in ("", "a", "b")]
    assert len({tuple(permuted(number, 30, *key) for number in range(30)) for key in keys}) == len(keys)


def deviation(counts: Counter[object], cells: int, degrees: int) -> float:
    """The chi-square statistic for equally likely cells, in standard deviations above its mean."""
    expected = counts.total() / cells
    empty = (cells - len(counts)) * expected
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values()) + empty
    return (chi_square - degrees) / sqrt(2 * degrees)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 16, 23])
def test_over_the_keys_each_number_goes_to_each_place_equally_often(size: int) -> None:
    counts = Counter((number, permuted(number, size, 1, key)) for key in range(2_000) for number in range(size))
    expected, degrees = 2_000 / size, (size - 1) ** 2
    # Each number goes to one place, and each place gets one number: hence the factor.
    chi_square = sum((counts[cell] - expected) ** 2 for cell in product(range(size), repeat=2)) / expected
    assert (chi_square * (size - 1) / size - degrees) / sqrt(2 * degrees) < 4


@pytest.mark.parametrize("size", [3, 4])
def test_over_the_keys_each_permutation_comes_equally_often(size: int) -> None:
    orders = list(permutations(range(size)))
    counts: Counter[object] = Counter(
        tuple(permuted(number, size, 1, key) for number in range(size)) for key in range(5_000)
    )
    assert deviation(counts, len(orders), len(orders) - 1) < 4


@pytest.mark.parametrize("size", [10_000, 1_000_003, 10**12])
def test_a_large_one_looks_like_a_real_shuffle(size: int) -> None:
    """Positions, distances of neighbours, and pairs of deciles are distributed as in a random order."""
    count = 10_000
    found = [permuted(number, size, 1, 0) for number in range(count)]
    shuffle = random.Random(1).sample(range(size), count)
    for order in (found, shuffle):
        distance = sum(abs(one - other) for one, other in pairwise(order)) / (count - 1) / size
        assert distance == pytest.approx(1 / 3, abs=0.01)
        places: Counter[object] = Counter((10 * k // count, 10 * place // size) for k, place in enumerate(order))
        assert deviation(places, 100, 90) < 4
        pairs: Counter[object] = Counter((10 * one // size, 10 * other // size) for one, other in pairwise(order))
        assert deviation(pairs, 100, 99) < 4
    assert sum(other == one + 1 for one, other in pairwise(found)) < 10


def test_a_trillion_windows_need_no_memory() -> None:
    text = Source("", 1024, True, (0,), (0,), 1024 * 10**12)
    tracemalloc.start()
    offsets = [text.shuffled(sample, 1) for sample in range(0, 10**13, 10**10)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(offsets)) == 1000
    assert peak < 1 << 20
