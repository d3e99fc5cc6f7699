"""What an evaluation found, for whatever writes it down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.breakdown import Breakdown
from pipeline.evaluate.samples import Sample
from pipeline.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated, and the result.

    Attributes:
        checkpoint: The model and its tokenizer.
        splits: The text.
        metrics: What metrics/evaluate.json holds.
        breakdowns: Of "val" and perhaps "test", where the loss lies.
        samples: For each prompt, what was drawn from it in several ways.
        params: The params by section: those that trained the model, and `evaluate`.
        versions: What was installed.
    """

    checkpoint: Checkpoint
    splits: TokenFolder
    metrics: dict[str, Any]
    breakdowns: dict[str, Breakdown]
    samples: list[list[Sample]]
    params: dict[str, dict[str, Any]]
    versions: dict[str, str]
