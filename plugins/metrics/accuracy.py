"""Accuracy of the next token."""

from collections.abc import Mapping
from typing import ClassVar

from pipeline.plugin import Metric, TokenScores, hookimpl


class Accuracy(Metric):
    """The share of tokens that were the model's most likely prediction."""

    name: ClassVar[str] = "accuracy"

    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        sums["tokens"] += len(scores.correct)
        sums["correct"] += int(scores.correct.sum())

    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"accuracy": sums["correct"] / sums["tokens"]}


@hookimpl
def register_metrics() -> list[type[Metric]]:
    return [Accuracy]
