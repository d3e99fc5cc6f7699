"""Calibration: whether predicted probabilities match the observed accuracy."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from pipeline.plugin import Metric, TokenScores, hookimpl

_BINS = 15


class Calibration(Metric):
    """The expected calibration error of the most likely token's probability, from 0 to 1.

    The tokens are put into 15 bins of equal width by this probability (intervals closed on the right). The error is
    the mean over tokens of |accuracy − mean probability| of their bin (Guo et al. 2017, "On Calibration of Modern
    Neural Networks", equation 3).
    """

    name: ClassVar[str] = "calibration"

    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        bins = (scores.confidence * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1)
        excess = torch.bincount(bins, scores.confidence - scores.correct.double(), _BINS)
        sums["tokens"] += len(bins)
        for number, value in enumerate(excess.tolist()):
            sums[f"excess in bin {number}"] += value

    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        excess = sum(abs(sums[f"excess in bin {number}"]) for number in range(_BINS))
        return {"calibration_error": excess / sums["tokens"]}


@hookimpl
def register_metrics() -> list[type[Metric]]:
    return [Calibration]
