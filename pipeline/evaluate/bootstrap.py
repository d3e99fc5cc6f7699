"""Confidence intervals by bootstrap: how much a number would vary if other text of the same kind were held out.

The units that are drawn again, with replacement, are whole documents, since the tokens of a document are alike;
where there are fewer than 30 documents they are blocks of text. Each draw adds the units' sums up and divides the
totals, as the number itself was made (a ratio estimator): long documents weigh more.
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
    """What is resampled, and its name: "documents", or "blocks" where there are fewer than 30 documents."""
    if len(breakdown.documents) >= FEWEST_DOCUMENTS:
        return "documents", breakdown.documents
    return "blocks", breakdown.blocks


def sums(scores: Sequence[UnitScore]) -> Sums:
    """The units' tokens, nats, bytes, text nats and correct ones as columns, [units, 5]."""
    return np.array([unit[1:] for unit in scores], dtype=np.float64).reshape(-1, 5)


def intervals(breakdown: Breakdown) -> dict[str, dict[str, float]]:
    """95% intervals of `loss`, `perplexity`, `bits_per_byte` and `accuracy`, each with its `low` and `high`.

    A number that the text does not have, or that overflows, has none; with a single unit there is none at all.
    """
    _, scores = units(breakdown)
    if len(scores) < 2:
        return {}
    values = sums(scores)
    count = effective(values[:, 0])
    tokens, nats, size, text_nats, correct = resampled(grouped(values)).T
    found = {"loss": interval(nats / tokens, count)}
    if found["loss"]["high"] <= _LARGEST_EXPONENT:
        found["perplexity"] = {end: math.exp(value) for end, value in found["loss"].items()}
    if size.all():
        found["bits_per_byte"] = interval(text_nats / math.log(2) / size, count)
    return found | {"accuracy": interval(correct / tokens, count)}


def effective(sizes: Draws) -> float:
    """How many units of equal size say as much as these: (Σ size)² / Σ size² (Kish 1965, "Survey Sampling"), and
    more than 1. A few long documents among short ones are few."""
    return max(float(sizes.sum() ** 2 / (sizes**2).sum()), 1.5)


def grouped(values: Sums) -> Sums:
    """The units' sums [units, columns], taken together where there are more than 4,096 of them: every 4,096th goes
    into the same group. The groups vary as the units do, and time and memory stay bounded."""
    if len(values) <= _MOST_UNITS:
        return values
    groups = np.arange(len(values)) % _MOST_UNITS
    return np.stack([np.bincount(groups, weights=column) for column in values.T], axis=1)


def resampled(values: Sums, resamples: int = RESAMPLES) -> Draws:
    """The columns' totals of as many draws, [resamples, columns]; always the same draws for as many units."""
    count = len(values)
    return in_parts(resamples, count, lambda generator, draws: _weights(generator, draws, count) @ values)


def in_parts(draws: int, units: int, draw: Callable[[np.random.Generator, int], Draws]) -> Draws:
    """Calls `draw` for some of the draws at a time, so that [draws, units] never fills the memory."""
    generator = np.random.Generator(np.random.Philox(key=_SEED))
    size = max(1, _AT_ONCE // units)
    return np.concatenate([draw(generator, min(size, draws - first)) for first in range(0, draws, size)])


def _weights(generator: np.random.Generator, draws: int, count: int) -> Draws:
    """How often each of the `count` units is in each draw of `count` units, [draws, count]."""
    chosen = generator.integers(count, size=(draws, count))
    flat = (chosen + np.arange(draws)[:, None] * count).ravel()
    return np.bincount(flat, minlength=draws * count).reshape(draws, count).astype(np.float64)


def interval(values: Draws, count: float) -> dict[str, float]:
    """The 95% interval of a number whose draws are `values`, from units that are worth `count` equal ones.

    It is the expanded percentile interval (Hesterberg 2015, "What Teachers Should Know About the Bootstrap",
    section 5.3): plain percentiles are too narrow for few units, by what Student's t and the divisor n − 1 fix.
    """
    quantile = student_quantile(1 - (1 - LEVEL) / 2, count - 1)
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * quantile)
    low, high = np.quantile(values, [tail, 1 - tail])
    return {"low": float(low), "high": float(high)}


_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(200)


def student_cdf(t: float, degrees: float) -> float:
    """P(T ≤ t) of Student's t with `degrees` of freedom, by Gauss–Legendre quadrature.

    With T = √ν · tan θ the density is cos^(ν−1) θ up to a constant, which is smooth and bounded.
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
