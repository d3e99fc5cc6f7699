"""Metrics over the held-out text, and metrics of tasks."""

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
    """N held-out targets, in the order of the text, and the model's predictions for them.

    The tensors are on the model's device. Read them only during the call: their memory is reused afterwards.

    Attributes:
        targets: The true ids [N], int64.
        nats: The negative log-likelihood of each target [N], float64.
        correct: Whether the most likely token is the target [N], bool.
        confidence: The probability of the most likely token [N], float64.
        positions: The position in the context window from which each target was predicted [N], int64: 0 … T − 1.
        bytes: The number of bytes of text of each target [N], int64: 0 for special tokens.
        logits: The logits from which each target was predicted [N, V], float32 or wider.
    """

    targets: torch.Tensor
    nats: torch.Tensor
    correct: torch.Tensor
    confidence: torch.Tensor
    positions: torch.Tensor
    bytes: torch.Tensor
    logits: torch.Tensor


class Metric(Component):
    """A metric over the held-out text, computed from sums over its tokens."""

    @abstractmethod
    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        """Adds targets to the sums.

        Args:
            sums: The metric's sums, by any names. Missing names are 0, so `sums["hits"] += 1` works. The sums over
                two parts of a text must add up to the sums over the whole text.
            scores: One or more targets with their predictions.
        """

    @abstractmethod
    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The metric's numbers, by their names in metrics/evaluate.json. The sums are over at least one target."""


@dataclass(frozen=True)
class TextModel:
    """A trained model with a text interface.

    Attributes:
        score: `score(text, prompt="")` returns the negative log-likelihood of the text after the prompt, in nats,
            summed over its tokens.
        choose: `choose(prompt, options)` returns the index of the most likely option: the one with the lowest
            score.
        generate: `generate(prompt, max_new_tokens=50, temperature=0.0)` returns the prompt and its continuation;
            temperature 0 always takes the most likely token.
        folder: data/tasks, the folder for the files of tasks. The evaluate stage depends on it.
    """

    score: Callable[..., float]
    choose: Callable[[str, Sequence[str]], int]
    generate: Callable[..., str]
    folder: Path


class TaskMetric(Metric):
    """A metric from a separate task instead of the held-out text."""

    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        """Does nothing: a task does not use the held-out text."""

    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns nothing: see `run`."""
        return {}

    @abstractmethod
    def run(self, model: TextModel) -> dict[str, float]:
        """Runs the task and returns its numbers, by their names under `tasks` in metrics/evaluate.json.

        Raises:
            ValueError: a file of the task is missing or invalid; the message names the file and the fix.
        """
