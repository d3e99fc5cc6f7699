"""Collects the data of the report from an evaluation, and writes the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.files import recorded_sha256
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.report.attention import read_attention
from pipeline.evaluate.report.conversation import read_conversations
from pipeline.evaluate.report.excerpt import read_excerpt
from pipeline.evaluate.report.page import write_page
from pipeline.evaluate.report.records import Report
from pipeline.evaluate.report.training import read_training
from pipeline.model.checkpoint import weights_file

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.paths import Paths


def write_report(evaluation: Evaluation, paths: Paths, folder: Path) -> None:
    """Writes report.html, and its curves as PNG and SVG files, into `folder`."""
    write_page(_report(evaluation, paths), folder)


def _report(evaluation: Evaluation, paths: Paths) -> Report:
    checkpoint, splits = evaluation.checkpoint, evaluation.splits
    sides, architecture = list(evaluation.breakdowns), checkpoint.model.architecture
    about, breakdowns = evaluation.about, evaluation.breakdowns
    plain = [side for side in sides if not splits.has_mask(side)]
    masked = [side for side in sides if splits.has_mask(side)]
    return Report(
        step=about["step"],
        stride=about["stride"],
        metrics={side: _merge_numbers(evaluation.metrics[side], about["sides"][side]) for side in sides},
        weights=checkpoint.weights,
        model=architecture.config.flatten() | {"parameters": architecture.parameter_count},
        training=read_training(paths.checkpoint),
        samples=evaluation.samples,
        excerpts=[read_excerpt(checkpoint, splits, side, breakdowns[side].documents) for side in plain],
        conversations=[
            each
            for side in masked
            for each in read_conversations(checkpoint, splits, side, breakdowns[side].documents)
        ],
        answered=evaluation.answered,
        tasks=evaluation.metrics.get("tasks", {}),
        packed="packed" in about,
        attention=read_attention(checkpoint, splits.ids(sides[-1])),
        breakdowns=breakdowns,
        data=splits.meta["files"],
        params={**evaluation.record.params, "evaluate": evaluation.params},
        versions=evaluation.record.versions,
        identity={
            "run": evaluation.record.identity,
            "weights": recorded_sha256(weights_file(paths.checkpoint, checkpoint.weights)),
            "tokenizer": checkpoint.tokenizer.fingerprint,
            **{path.name: recorded_sha256(path) for path in map(splits.id_file, splits.names)},
        },
    )


def _merge_numbers(numbers: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Merges the numbers and the details of a text; if both have a key, the number is used."""
    return {**numbers, **about, **numbers}
