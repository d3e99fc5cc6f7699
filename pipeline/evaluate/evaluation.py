"""What an evaluation found, for whatever writes it down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.breakdown import Breakdown
from pipeline.evaluate.samples import Sample
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.run_record import RunRecord


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated, and the result.

    Attributes:
        checkpoint: The model and its tokenizer.
        splits: The text.
        metrics: What metrics/evaluate.json holds.
        about: What reports/evaluation.json holds: of each side its intervals, baselines and groups, too.
        breakdowns: Of "val" and perhaps "test", where the loss lies.
        samples: For each prompt, what was drawn from it in several ways.
        record: What made the checkpoint.
        params: The effective params of the evaluation.
    """

    checkpoint: Checkpoint
    splits: TokenFolder
    metrics: dict[str, Any]
    about: dict[str, Any]
    breakdowns: dict[str, Breakdown]
    samples: list[list[Sample]]
    record: RunRecord
    params: dict[str, Any]
