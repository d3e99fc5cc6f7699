"""What the report shows, as plain records: nothing here reads a file or draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from pipeline.evaluate.breakdown import Breakdown
    from pipeline.evaluate.samples import Sample


PROCESSOR_SECONDS = "processor_seconds"
SPEED = "tokens_per_sec"
"""What `Training.history` has beside the columns of history.tsv."""


@dataclass(frozen=True)
class Training:
    """What training wrote down on its way.

    Attributes:
        history: The numbers of each evaluation, with the processor seconds and the speed up to it.
        performance: What performance.json holds.
        samples: Texts that callbacks showed: step, callback, text.
        steps: What steps.tsv holds: the numbers of single steps.
    """

    history: list[dict[str, float]]
    performance: dict[str, float]
    samples: list[dict[str, Any]]
    steps: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Token:
    """A token of held-out text, and what the model expected in its place.

    Attributes:
        text: Its text; bytes that are no whole character as escapes.
        nats: Its negative log-likelihood; None for the first of a split, which nothing foretells.
        rank: How many tokens the model held for at least as likely, itself included.
        expected: The likeliest tokens and their probabilities, from the top.
        hit: Which of `expected` is this token, if one is.
    """

    text: str
    nats: float | None = None
    rank: int = 0
    expected: tuple[tuple[str, float], ...] = ()
    hit: int | None = None


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a held-out document, token by token.

    Attributes:
        side: "val" or "test".
        document: The document's name.
        tokens: Its tokens, in order.
    """

    side: str
    document: str
    tokens: list[Token]


@dataclass(frozen=True)
class AttentionMaps:
    """Where each head looks in one text.

    Attributes:
        tokens: The text's tokens [T].
        weights: [layers, heads, T, T], each row adding up to 1: the token that looks, then what it looks at.
        layers, heads: Their numbers, from 1; of a large model some, evenly spaced.
    """

    tokens: list[str]
    weights: np.ndarray
    layers: list[int]
    heads: list[int]


@dataclass(frozen=True)
class Report:
    """Everything the report shows.

    Attributes:
        step: Of which step the weights are.
        stride: How far the windows move, in tokens.
        metrics: Of each side what metrics/evaluate.json and reports/evaluation.json hold: its numbers, `interval`,
            `baselines`, `groups`.
        weights: "best" or "last".
        model: The architecture, and its number of parameters.
        training: What training wrote down.
        samples: For each prompt, what was drawn from it in several ways.
        excerpts: Held-out text, token by token.
        attention: Where each head looks; None for a model of one token's context.
        breakdowns: Where the loss of val and of test lies.
        data: Of each split its documents, bytes and tokens, as the splits' meta.json has them.
        params: The effective params by section: those that trained the model, and `evaluate`.
        versions: What was installed when the model was trained.
        identity: Names of things that are the same only if their bytes are, and their sha256.
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
