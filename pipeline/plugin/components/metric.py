"""Metrics over the held-out text, and metrics of tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.plugin.components.base import Component
from pipeline.plugin.components.corpus import Message

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


Prompt = Sequence[int]
"""The token ids of a conversation up to where the assistant begins to speak."""


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a message of the assistant, the right answer.

    Attributes:
        name: Its name, such as that of the document.
        prompt: Its beginning.
        answer: The right answer.
    """

    name: str
    prompt: Prompt
    answer: str


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: The answer, without the token that ends the turn.
        ended: Whether the model ended its turn.
    """

    text: str
    ended: bool


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
        record: `record(number, item, value, text="")` writes the value of a single item, such as whether a question
            was answered correctly, to reports/tasks.tsv, where `pipeline compare` pairs two runs. `number` is the
            name of the number that is the mean of the values.
        questions: `questions(split, limit)` returns the held-out conversations of "val" or "test" that end with the
            assistant, from at most `limit` documents, evenly spaced.
        chat_prompt: `chat_prompt(messages)` returns the prompt that the chat template makes of the messages.
        answers: `answers(prompts, max_new_tokens)` returns the most likely `Answer` to each prompt.
        answer_scores: `answer_scores(prompts, texts)` returns for each prompt and its text the negative
            log-likelihood of this answer in nats and its number of tokens, with the token that ends the turn.
    """

    score: Callable[..., float]
    choose: Callable[[str, Sequence[str]], int]
    generate: Callable[..., str]
    folder: Path
    record: Callable[..., None]
    questions: Callable[[str, int], list[Question]]
    chat_prompt: Callable[[Sequence[Message]], Prompt]
    answers: Callable[[Sequence[Prompt], int], list[Answer]]
    answer_scores: Callable[[Sequence[Prompt], Sequence[str]], list[tuple[float, int]]]


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
