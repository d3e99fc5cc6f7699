"""The data of the report as plain records, without reading files or drawing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from pipeline.evaluate.breakdown import Breakdown
    from pipeline.evaluate.samples import AnsweredQuestion, Sample


PROCESSOR_SECONDS = "processor_seconds"
SPEED = "tokens_per_sec"
"""The columns that `Training.history` has in addition to those of history.tsv."""


@dataclass(frozen=True)
class Training:
    """The records of a training run.

    Attributes:
        history: The numbers of each evaluation, with the processor seconds so far and the speed since the last one.
        performance: The content of performance.json.
        samples: The texts that callbacks showed: step, callback, text.
        steps: The content of steps.tsv: the numbers of single steps.
    """

    history: list[dict[str, float]]
    performance: dict[str, float]
    samples: list[dict[str, Any]]
    steps: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Token:
    """A token of held-out text and the model's predictions for it.

    Attributes:
        text: The text of the token; bytes that are not complete characters are escaped.
        nats: The negative log-likelihood; None for the first token of a split, which is not predicted, and for what
            is only read.
        rank: The rank of the token in the prediction, from 1.
        expected: The most likely tokens with their probabilities, the most likely first.
        hit: The index of this token in `expected`, or None.
        learnt: Whether the model learns to write it, instead of only reading it.
    """

    text: str
    nats: float | None = None
    rank: int = 0
    expected: tuple[tuple[str, float], ...] = ()
    hit: int | None = None
    learnt: bool = True


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a held-out document, token by token.

    Attributes:
        side: "val" or "test".
        document: The name of the document.
        tokens: The tokens, in order.
    """

    side: str
    document: str
    tokens: list[Token]


@dataclass(frozen=True)
class Conversation:
    """The beginning of a held-out conversation.

    Attributes:
        side: "val" or "test".
        document: The name of the document.
        turns: Who speaks, and the tokens; adjacent tokens that are only read are one. The role is empty where it is
            not known.
        cut: Whether there is more of it.
    """

    side: str
    document: str
    turns: list[tuple[str, list[Token]]]
    cut: bool = False


@dataclass(frozen=True)
class AttentionMaps:
    """The attention weights of each head for one text.

    Attributes:
        tokens: The tokens of the text [T].
        weights: The weights [layers, heads, T (query), T (key)]; each row adds up to 1.
        layers, heads: The numbers of the shown layers and heads, from 1; for a large model, some of them.
    """

    tokens: list[str]
    weights: np.ndarray
    layers: list[int]
    heads: list[int]


@dataclass(frozen=True)
class Report:
    """All data of the report.

    Attributes:
        step: The step of the weights.
        stride: The distance between the starts of windows, in tokens.
        metrics: The entries of each text in metrics/evaluate.json and reports/evaluation.json: numbers, `interval`,
            `baselines`, `groups`.
        weights: "best" or "last".
        model: The architecture and the number of parameters.
        training: The records of the training run.
        samples: For each prompt, continuations sampled in several ways.
        excerpts: Excerpts of held-out text.
        attention: The attention maps, or None.
        breakdowns: The breakdown of the loss of val and test.
        data: The numbers of documents, bytes and tokens of each split, from the splits' meta.json.
        params: The effective params by section: those of the training run, and `evaluate`.
        versions: The installed versions at training time.
        identity: The sha256 of files and data, by name.
        conversations: Held-out conversations, in place of excerpts.
        answered: Held-out questions with the model's answers.
        tasks: The numbers of tasks.
        packed: Whether the evaluation windows hold whole documents.
    """

    step: int
    stride: int
    metrics: dict[str, dict[str, Any]]
    weights: str
    model: dict[str, Any]
    training: Training
    samples: list[list[Sample]]
    excerpts: list[Excerpt]
    attention: AttentionMaps | None
    breakdowns: dict[str, Breakdown]
    data: dict[str, dict[str, int]]
    params: dict[str, dict[str, Any]]
    versions: dict[str, str]
    identity: dict[str, str]
    conversations: list[Conversation] = field(default_factory=list)
    answered: list[AnsweredQuestion] = field(default_factory=list)
    tasks: dict[str, float] = field(default_factory=dict)
    packed: bool = False
