"""Compares two recipes: several seeds of each, scored on the same text.

The test is about the params; the random samples are the seeds and the text. So the uncertainty has three parts: the
variance between the seeds of A, that between the seeds of B, and that of the recipes' difference between documents.
"""

from __future__ import annotations

import math

from pipeline.comparison.checkpoints import Difference
from pipeline.comparison.runs import PairedScores, Totals
from pipeline.evaluate.bootstrap import LEVEL, effective_count, student_cdf, student_quantile


def compare_recipes(paired: PairedScores, first_seeds: int, alpha: float = 1 - LEVEL) -> Difference:
    """Compares the mean losses of two recipes, with a confidence interval at level 1 − `alpha`.

    The first `first_seeds` runs of `paired` belong to the first recipe.

    Let L be the loss of one run on the whole text, a and b the numbers of seeds, and n the effective number of
    units (documents or blocks). The variance of mean L(B) − mean L(A) is estimated by

        V = s²(A) / a + s²(B) / b + D,

    where s² is the variance of L between the seeds of a recipe. D is the variance due to the choice of the text:
    the variance of the sum of the units' differences, minus the part of it that comes from the seeds (which s²
    already includes), and at least 0. The interval is Student's t with the degrees of freedom of Welch and
    Satterthwaite, V² / Σ (V_k² / ν_k) over the three parts, with ν = a − 1, b − 1, n − 1.

    Equal seeds of both recipes are not treated as pairs, so the variance is, if anything, too large for them.
    """
    losses = paired.losses
    groups = (slice(0, first_seeds), slice(first_seeds, len(losses)))
    first, second = (float(losses[group].mean()) for group in groups)
    count = len(paired.names)
    if count < 2:  # one unit does not show the variance between texts
        return Difference(first, second, second - first, -math.inf, math.inf, 1.0, paired.what, count)
    parts = [
        *((float(losses[group].var(ddof=1)) / len(losses[group]), len(losses[group]) - 1) for group in groups),
        (_variance_from_text(paired, groups), effective_count(paired.sizes[0]) - 1),
    ]
    variance = math.fsum(part for part, _ in parts)
    difference = second - first
    if not variance:  # all losses are bit-identical
        p_value = 1.0 if not difference else 0.0
        return Difference(first, second, difference, difference, difference, p_value, paired.what, count)
    degrees = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    error = math.sqrt(variance)
    half = student_quantile(1 - alpha / 2, degrees) * error
    p_value = max(2 * student_cdf(-abs(difference) / error, degrees), 0.0)
    return Difference(first, second, difference, difference - half, difference + half, p_value, paired.what, count)


def _variance_from_text(paired: PairedScores, groups: tuple[slice, slice]) -> float:
    """D: the variance of the difference due to the choice of the text, without the part due to the seeds."""
    influences = _influences(paired)
    total = float(((influences[groups[1]].mean(axis=0) - influences[groups[0]].mean(axis=0)) ** 2).sum())
    of_seeds = sum(
        float((influences[group].var(axis=0, ddof=1) / len(influences[group])).sum()) for group in groups
    )
    units = effective_count(paired.sizes[0])
    return max(total - of_seeds, 0.0) * units / (units - 1)


def _influences(paired: PairedScores) -> Totals:
    """The influence of each unit on the loss of each run [runs, units]: (nats − loss · size) / sum of sizes, the
    derivative of the ratio with respect to the unit's weight. Each row adds up to 0."""
    found: Totals = (paired.nats - paired.losses[:, None] * paired.sizes) / paired.sizes.sum(axis=1, keepdims=True)
    return found
