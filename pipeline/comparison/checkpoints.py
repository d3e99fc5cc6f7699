"""Whether two checkpoints differ on a text: the same documents, scored by both.

The question is about these very weights. What is drawn again is the text: would A still be better on other text of
this kind? The params that made them are not judged, since another seed would have made other weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.comparison.runs import PairedScores
from pipeline.evaluate.bootstrap import RESAMPLES, Draws, effective, grouped, in_parts, interval, resampled


@dataclass(frozen=True)
class DocumentChange:
    """A document, what the runs' losses on it are, and what of the whole difference comes from it."""

    name: str
    first: float
    second: float
    contribution: float


@dataclass(frozen=True)
class Difference:
    """How two sides of a comparison differ on one held-out text.

    Attributes:
        first, second: Their losses (their mean losses, for recipes).
        difference: second − first: below 0, the second is better.
        low, high: Its 95% interval.
        p_value: How likely so large a difference would be if there were none.
        what, units: What was resampled, "documents" or "blocks", and how many.
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
        """Whether the interval leaves 0 out, and the p-value is below 0.05."""
        return self.p_value < 0.05 and not self.low <= 0 <= self.high


def compare_checkpoints(paired: PairedScores) -> Difference:
    """The difference of the two runs in `paired`, by a paired bootstrap and a sign-flip test over its units.

    The p-value is the share of 10,000 random flips, in each of which A and B change places in every document with
    probability ½, whose difference is as large as the one found (Fisher's randomisation test, two-sided).
    """
    first, second = paired.losses.tolist()
    count = len(paired.names)
    totals = resampled(grouped(np.concatenate([paired.nats, paired.sizes]).T))
    draws = totals[:, 1] / totals[:, 3] - totals[:, 0] / totals[:, 2]
    ends = interval(draws, effective(paired.sizes[0])) if count > 1 else {"low": -np.inf, "high": np.inf}
    p_value = _sign_flip(_contributions(paired))
    return Difference(first, second, second - first, ends["low"], ends["high"], p_value, paired.what, count)


def most_changed(paired: PairedScores, count: int = 5) -> list[DocumentChange]:
    """The units from which most of the difference comes, in either direction."""
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
    """Each unit's part of the difference [units]; they add up to it."""
    shares = paired.nats / paired.sizes.sum(axis=1, keepdims=True)
    found: Draws = shares[1] - shares[0]
    return found


def _sign_flip(contributions: Draws) -> float:
    parts = grouped(contributions[:, None])[:, 0]
    # Rounding must not tell a flip from the difference itself.
    least = abs(float(parts.sum())) - 1e-12 * float(np.abs(parts).sum())

    def flipped(generator: np.random.Generator, draws: int) -> Draws:
        signs = generator.integers(2, size=(draws, len(parts)), dtype=np.int8) * 2.0 - 1
        return signs @ parts

    reached = int((np.abs(in_parts(RESAMPLES, len(parts), flipped)) >= least).sum())
    return (1 + reached) / (1 + RESAMPLES)
