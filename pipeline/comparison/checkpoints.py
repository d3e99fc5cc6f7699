"""Compares two checkpoints on the same documents.

The test is about these two sets of weights; the random sample is the text: would A still be better on other text of
this kind? It says nothing about the params that produced them, because another seed would give other weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.comparison.runs import PairedScores
from pipeline.evaluate.bootstrap import (
    RESAMPLES,
    Draws,
    effective_count,
    group_units,
    in_chunks,
    interval,
    resampled,
)


@dataclass(frozen=True)
class DocumentChange:
    """A document with its loss in both runs and its contribution to the total difference."""

    name: str
    first: float
    second: float
    contribution: float


@dataclass(frozen=True)
class Difference:
    """The difference of two runs or recipes on one held-out text.

    Attributes:
        first, second: The losses (for recipes: the mean losses).
        difference: second − first; if negative, the second is better.
        low, high: The 95% confidence interval of the difference.
        p_value: The probability of a difference at least as large if there is none.
        what, units: The resampled units, "documents" or "blocks", and their number.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    what: str
    units: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0 and the p-value is below 0.05."""
        return self.p_value < 0.05 and not self.low <= 0 <= self.high


def compare_checkpoints(paired: PairedScores) -> Difference:
    """Compares the two runs in `paired`: interval by a paired bootstrap, p-value by a sign-flip test over the
    units.

    In each of 10,000 random flips, A and B are swapped in every document with probability ½. The p-value is the
    share of flips whose difference is at least as large as the observed one (Fisher's randomisation test,
    two-sided).
    """
    first, second = paired.losses.tolist()
    count = len(paired.names)
    totals = resampled(group_units(np.concatenate([paired.nats, paired.sizes]).T))
    draws = totals[:, 1] / totals[:, 3] - totals[:, 0] / totals[:, 2]
    ends = interval(draws, effective_count(paired.sizes[0])) if count > 1 else {"low": -np.inf, "high": np.inf}
    p_value = _sign_flip(_contributions(paired))
    return Difference(first, second, second - first, ends["low"], ends["high"], p_value, paired.what, count)


def most_changed(paired: PairedScores, count: int = 5) -> list[DocumentChange]:
    """The units with the largest contributions to the difference, in either direction."""
    contributions = _contributions(paired)
    largest = np.argsort(-np.abs(contributions), kind="stable")[:count].tolist()
    means = paired.nats / np.maximum(paired.sizes, 1)
    return [
        DocumentChange(
            paired.names[index], float(means[0, index]), float(means[1, index]), float(contributions[index])
        )
        for index in largest
        if contributions[index]
    ]


def _contributions(paired: PairedScores) -> Draws:
    """The contribution of each unit to the difference [units]; they add up to the difference."""
    shares = paired.nats / paired.sizes.sum(axis=1, keepdims=True)
    found: Draws = shares[1] - shares[0]
    return found


def _sign_flip(contributions: Draws) -> float:
    parts = group_units(contributions[:, None])[:, 0]
    # The tolerance makes flips count that equal the observed difference up to rounding.
    least = abs(float(parts.sum())) - 1e-12 * float(np.abs(parts).sum())

    def flipped(generator: np.random.Generator, draws: int) -> Draws:
        signs = generator.integers(2, size=(draws, len(parts)), dtype=np.int8) * 2.0 - 1
        return signs @ parts

    reached = int((np.abs(in_chunks(RESAMPLES, len(parts), flipped)) >= least).sum())
    return (1 + reached) / (1 + RESAMPLES)
