"""Bootstrap confidence intervals: how much a number would vary with other held-out text of the same kind.

The resampled units are documents, because tokens of a document are correlated; with fewer than 30 documents they
are blocks of text. Each resample adds up the sums of its units and divides the totals, as the number itself is
computed (a ratio estimator), so that long documents have more weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from pipeline.evaluate.breakdown import Breakdown, Sums, UnitScore

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST_DOCUMENTS = 30
_MOST_UNITS = 4096
_AT_ONCE = 1 << 22
_SEED = 20_231
_LARGEST_EXPONENT = 709.0

Draws = np.ndarray[Any, np.dtype[np.float64]]


def units(breakdown: Breakdown) -> tuple[str, list[UnitScore]]:
    """The units to resample and their kind: "documents", or "blocks" if there are fewer than 30 documents."""
    if len(breakdown.documents) >= FEWEST_DOCUMENTS:
        return "documents", breakdown.documents
    return "blocks", breakdown.blocks


def sums(scores: Sequence[UnitScore]) -> Sums:
    """The units' tokens, nats, bytes, text nats and correct predictions as columns [units, 5]."""
    return np.array([unit[1:] for unit in scores], dtype=np.float64).reshape(-1, 5)


def intervals(breakdown: Breakdown) -> dict[str, dict[str, float]]:
    """95% intervals of `loss`, `perplexity`, `bits_per_byte` and `accuracy`, each with `low` and `high`.

    Numbers that are undefined for this text or overflow are left out. With a single unit the result is empty.
    """
    _, scores = units(breakdown)
    if len(scores) < 2:
        return {}
    values = sums(scores)
    count = effective_count(values[:, 0])
    tokens, nats, size, text_nats, correct = resampled(group_units(values)).T
    found = {"loss": interval(nats / tokens, count)}
    if found["loss"]["high"] <= _LARGEST_EXPONENT:
        found["perplexity"] = {end: math.exp(value) for end, value in found["loss"].items()}
    if size.all():
        found["bits_per_byte"] = interval(text_nats / math.log(2) / size, count)
    return found | {"accuracy": interval(correct / tokens, count)}


def effective_count(sizes: Draws) -> float:
    """The effective number of units, (Σ size)² / Σ size² (Kish 1965, "Survey Sampling"), and at least 1.5. A few
    long documents among many short ones give a small number."""
    return max(float(sizes.sum() ** 2 / (sizes**2).sum()), 1.5)


def group_units(values: Sums) -> Sums:
    """Merges the units' sums [units, columns] into at most 4,096 groups: every 4,096th unit is in the same group.
    This bounds time and memory, and keeps the variance of the totals."""
    if len(values) <= _MOST_UNITS:
        return values
    groups = np.arange(len(values)) % _MOST_UNITS
    return np.stack([np.bincount(groups, weights=column) for column in values.T], axis=1)


def resampled(values: Sums, resamples: int = RESAMPLES) -> Draws:
    """The column totals of the resamples [resamples, columns]. For the same number of units, the draws are the
    same."""
    count = len(values)
    return in_chunks(resamples, count, lambda generator, draws: _weights(generator, draws, count) @ values)


def in_chunks(draws: int, units: int, draw: Callable[[np.random.Generator, int], Draws]) -> Draws:
    """Calls `draw` for chunks of the draws, so that [draws, units] is never in memory as a whole."""
    generator = np.random.Generator(np.random.Philox(key=_SEED))
    size = max(1, _AT_ONCE // units)
    return np.concatenate([draw(generator, min(size, draws - first)) for first in range(0, draws, size)])


def _weights(generator: np.random.Generator, draws: int, count: int) -> Draws:
    """The multiplicity of each of the `count` units in each resample [draws, count]."""
    chosen = generator.integers(count, size=(draws, count))
    flat = (chosen + np.arange(draws)[:, None] * count).ravel()
    return np.bincount(flat, minlength=draws * count).reshape(draws, count).astype(np.float64)


def interval(values: Draws, count: float) -> dict[str, float]:
    """The 95% interval from the resampled `values`, with an effective number of `count` units.

    It is the expanded percentile interval (Hesterberg 2015, "What Teachers Should Know About the Bootstrap",
    section 5.3). Plain percentile intervals are too narrow for few units; Student's t and the divisor n − 1 correct
    it.
    """
    quantile = student_quantile(1 - (1 - LEVEL) / 2, count - 1)
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * quantile)
    low, high = np.quantile(values, [tail, 1 - tail])
    return {"low": float(low), "high": float(high)}


_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(200)


def student_cdf(t: float, degrees: float) -> float:
    """P(T ≤ t) of Student's t with `degrees` of freedom, by Gauss–Legendre quadrature.

    With T = √ν · tan θ, the density of θ is proportional to cos^(ν−1) θ, which is smooth and bounded.
    """
    angle = math.atan(t / math.sqrt(degrees))
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(math.pi) / 2
    cosines = np.cos((_NODES + 1) * angle / 2)
    area = float(np.exp((degrees - 1) * np.log(cosines)) @ _NODE_WEIGHTS) * angle / 2
    return 0.5 + math.exp(log_norm) * area


def student_quantile(share: float, degrees: float) -> float:
    """The t with P(T ≤ t) = `share` ≥ 0.5, by bisection."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < share else (low, middle)
    return high
