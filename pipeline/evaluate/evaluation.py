"""The results of an evaluation, for the code that writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.breakdown import Breakdown
from pipeline.evaluate.samples import AnsweredQuestion, Sample
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.run_record import RunRecord


@dataclass(frozen=True)
class Evaluation:
    """An evaluated checkpoint and the results.

    Attributes:
        checkpoint: The model and its tokenizer.
        splits: The text.
        metrics: The content of metrics/evaluate.json.
        about: The content of reports/evaluation.json, with the intervals, baselines and groups of each text.
        breakdowns: The breakdown of the loss of "val" and, if there is one, "test".
        samples: For each prompt, continuations sampled in several ways.
        answered: Some held-out questions with the model's answers; empty without a chat template.
        record: The record of the run that trained the checkpoint.
        params: The effective params of the evaluation.
    """

    checkpoint: Checkpoint
    splits: TokenFolder
    metrics: dict[str, Any]
    about: dict[str, Any]
    breakdowns: dict[str, Breakdown]
    samples: list[list[Sample]]
    answered: list[AnsweredQuestion]
    record: RunRecord
    params: dict[str, Any]
