"""Whether two recipes differ: several seeds of each, scored on the same text.

The question is about the params, and would be asked again with other seeds and other text of this kind. So the
uncertainty has three parts: how the seeds of A vary, how those of B vary, and how the recipes' difference varies
from document to document.
"""

from __future__ import annotations

import math

from pipeline.comparison.checkpoints import Difference
from pipeline.comparison.runs import PairedScores, Totals
from pipeline.evaluate.bootstrap import LEVEL, effective, student_cdf, student_quantile


def compare_recipes(paired: PairedScores, first_seeds: int, alpha: float = 1 - LEVEL) -> Difference:
    """The difference of two recipes' mean losses; the first `first_seeds` runs of `paired` are of the first. The
    interval misses the true one with a chance of `alpha`.

    With L the loss of one run over all of the text, a and b seeds, and units (documents or blocks) that are worth n
    of equal size, the variance of mean L(B) − mean L(A) is estimated by

        V = s²(A) / a + s²(B) / b + D,

    where s² is the variance of L between a recipe's seeds. D is what the choice of the text adds: the variance of
    the sum of the units' own differences, less the part of it that comes from the seeds alone (a unit's loss varies
    with them too, and s² has counted that already), and at least 0. The interval is Student's t with the degrees of
    freedom of Welch and Satterthwaite, V² / Σ (V_k² / ν_k) over the three parts; their ν are a − 1, b − 1, n − 1.

    For seeds that both recipes share the variance is too large, if anything: equal seeds are not taken as pairs.
    """
    losses = paired.losses
    groups = (slice(0, first_seeds), slice(first_seeds, len(losses)))
    first, second = (float(losses[group].mean()) for group in groups)
    count = len(paired.names)
    if count < 2:  # what other text would say cannot be told from one piece of it
        return Difference(first, second, second - first, -math.inf, math.inf, 1.0, paired.what, count)
    parts = [
        *((float(losses[group].var(ddof=1)) / len(losses[group]), len(losses[group]) - 1) for group in groups),
        (_variance_from_text(paired, groups), effective(paired.sizes[0]) - 1),
    ]
    variance = math.fsum(part for part, _ in parts)
    difference = second - first
    if not variance:  # all the same, to the bit
        p_value = 1.0 if not difference else 0.0
        return Difference(first, second, difference, difference, difference, p_value, paired.what, count)
    degrees = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    error = math.sqrt(variance)
    half = student_quantile(1 - alpha / 2, degrees) * error
    p_value = max(2 * student_cdf(-abs(difference) / error, degrees), 0.0)
    return Difference(first, second, difference, difference - half, difference + half, p_value, paired.what, count)


def _variance_from_text(paired: PairedScores, groups: tuple[slice, slice]) -> float:
    """D: what the choice of the text adds to the variance of the difference, the seeds' part of it left out."""
    influences = _influences(paired)
    total = float(((influences[groups[1]].mean(axis=0) - influences[groups[0]].mean(axis=0)) ** 2).sum())
    of_seeds = sum(
        float((influences[group].var(axis=0, ddof=1) / len(influences[group])).sum()) for group in groups
    )
    units = effective(paired.sizes[0])
    return max(total - of_seeds, 0.0) * units / (units - 1)


def _influences(paired: PairedScores) -> Totals:
    """How far each unit pulls each run's loss its way, [runs, units]: (nats − loss · size) / sum of sizes, which is
    the ratio's derivative by the unit's weight. A row's sum is 0."""
    found: Totals = (paired.nats - paired.losses[:, None] * paired.sizes) / paired.sizes.sum(axis=1, keepdims=True)
    return found
