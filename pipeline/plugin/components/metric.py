"""Metrics over held-out text, and metrics of tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TokenScores:
    """Some of the held-out targets, N of them in the text's order, and what the model said of each.

    The tensors are on the model's device. They are to be read during the call only: their memory is used again.

    Attributes:
        targets: The true ids [N], int64.
        nats: Their negative log-likelihoods [N], float64.
        correct: Whether the likeliest token was the true one [N], bool.
        confidence: The likeliest token's probability [N], float64.
        positions: How many tokens of the context came before each, less one [N], int64: 0 … T−1.
        bytes: The bytes of text that each stands for [N], int64: 0 for special tokens.
        logits: What the model predicted in their places [N, V], in float32 (or wider).
    """

    targets: torch.Tensor
    nats: torch.Tensor
    correct: torch.Tensor
    confidence: torch.Tensor
    positions: torch.Tensor
    bytes: torch.Tensor
    logits: torch.Tensor


class Metric(Component):
    """Numbers over held-out text, from sums over its tokens."""

    @abstractmethod
    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        """Adds further targets to the sums.

        Args:
            sums: Sums by names of the metric's own; one that is not there yet is 0, so `sums["hits"] += 1` works.
                The sums of two parts of a text, added up, must be those of the whole.
            scores: The targets: any number of them, at least one.
        """

    @abstractmethod
    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The numbers, by their names in metrics/evaluate.json, from the sums of at least one target."""


@dataclass(frozen=True)
class TextModel:
    """A trained model that is asked in texts.

    Attributes:
        score: `score(text, prompt="")` is the text's negative log-likelihood after the prompt, in nats, summed over
            its tokens.
        choose: `choose(prompt, options)` is the number of the likeliest option, from 0: of the lowest such sum.
        generate: `generate(prompt, max_new_tokens=50, temperature=0.0)` is the prompt and what follows;
            temperature 0 takes the likeliest token each time.
        folder: data/tasks, where the texts of tasks lie: the evaluate stage depends on it.
    """

    score: Callable[..., float]
    choose: Callable[[str, Sequence[str]], int]
    generate: Callable[..., str]
    folder: Path


class TaskMetric(Metric):
    """Numbers from a task of its own, not from the held-out text."""

    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        """Nothing: a task is not about the held-out text."""

    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nothing."""
        return {}

    @abstractmethod
    def run(self, model: TextModel) -> dict[str, float]:
        """The numbers, by the names that metrics/evaluate.json has for them under `tasks`.

        Raises:
            ValueError: the task's texts are missing or damaged; says which file and how to fix it.
        """
