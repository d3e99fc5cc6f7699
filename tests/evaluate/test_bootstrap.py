"""Bootstrap intervals: theoretical width, nominal coverage, reproducible, bounded memory."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from pipeline.evaluate.bootstrap import (
    group_units,
    interval,
    intervals,
    resampled,
    student_cdf,
    student_quantile,
    units,
)  # fmt: skip
from pipeline.evaluate.breakdown import Breakdown, UnitScore


def made(documents: int, blocks: int = 16, seed: int = 0, size: int = 4) -> Breakdown:
    generator = np.random.default_rng(seed)

    def some(count: int) -> list[UnitScore]:
        tokens = generator.integers(50, 500, count)
        loss = generator.normal(4, 0.5, count)
        return [
            UnitScore(
                str(number),
                int(count),
                float(count * nats),
                int(count) * size,
                float(count * nats),
                int(count) // 3,
            )
            for number, (count, nats) in enumerate(zip(tokens, loss, strict=True))
        ]

    return Breakdown(documents=some(documents), blocks=some(blocks), positions=[], frequencies=[])


def test_students_t_is_that_of_the_tables() -> None:
    table = {1: 12.7062, 2: 4.3027, 4: 2.7764, 10: 2.2281, 30: 2.0423, 1000: 1.9623}
    assert {n: round(student_quantile(0.975, n), 4) for n in table} == table
    assert student_cdf(2, 5) == pytest.approx(0.949030, abs=1e-6)
    assert student_cdf(-2, 5) == pytest.approx(1 - 0.949030, abs=1e-6)


def test_an_interval_has_the_size_that_theory_gives_a_ratio() -> None:
    breakdown = made(300)
    tokens, nats = np.array([each[1:3] for each in breakdown.documents]).T
    loss = nats.sum() / tokens.sum()
    error = math.sqrt(((nats - loss * tokens) ** 2).sum()) / tokens.sum()
    found = intervals(breakdown)
    assert found["loss"]["high"] - found["loss"]["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found["perplexity"]["low"] == math.exp(found["loss"]["low"])
    assert found["bits_per_byte"]["low"] == pytest.approx(found["loss"]["low"] / math.log(2) / 4)
    assert found["accuracy"]["low"] <= found["accuracy"]["high"] < 0.34


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(1)
    for count in (8, 31):
        held = 0
        for _ in range(400):
            tokens = generator.integers(50, 500, count).astype(float)
            nats = tokens * generator.normal(4, 0.5, count)
            totals = resampled(np.stack([tokens, nats], axis=1), 1000)
            ends = interval(totals[:, 1] / totals[:, 0], count)
            held += ends["low"] <= 4 <= ends["high"]
        assert 0.92 <= held / 400 <= 0.985, count


def test_documents_are_resampled_and_below_thirty_of_them_blocks() -> None:
    assert units(made(30))[0] == "documents"
    assert units(made(29)) == ("blocks", made(29).blocks)
    assert intervals(made(29)) != intervals(made(29, blocks=8))
    assert intervals(made(1, blocks=1)) == {}


def test_the_same_scores_have_the_same_interval() -> None:
    assert intervals(made(40)) == intervals(made(40))


def test_what_overflows_or_has_no_bytes_has_no_interval() -> None:
    breakdown = made(40, size=0)
    assert set(intervals(breakdown)) == {"loss", "perplexity", "accuracy"}
    far = [each._replace(nats=each.tokens * 800.0) for each in breakdown.documents]
    assert set(intervals(breakdown._replace(documents=far))) == {"loss", "accuracy"}


def test_a_great_many_documents_take_bounded_memory_and_as_wide_an_interval() -> None:
    generator = np.random.default_rng(2)
    values = np.stack([np.ones(300_000), generator.normal(4, 0.5, 300_000)], axis=1)
    tracemalloc.start()
    totals = resampled(group_units(values), 500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    assert (totals[:, 1] / totals[:, 0]).std() == pytest.approx(0.5 / math.sqrt(300_000), rel=0.1)
