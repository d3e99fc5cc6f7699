"""Evaluate the model on every held-out token.

Writes metrics/evaluate.json and reports/report.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.console import Progress, fact, say
from pipeline.core.errors import DataError
from pipeline.core.files import MANIFEST, recorded_sha256, sha256, write_json
from pipeline.core.fingerprint import output_fingerprint
from pipeline.core.params_diff import effective
from pipeline.core.paths import METRICS, RECORD
from pipeline.core.publication import published_folder
from pipeline.core.republish import republished
from pipeline.core.symlinks import check_symlinks
from pipeline.data.batches import EvaluationWindow, evaluation_windows
from pipeline.data.masked import MaskedIds
from pipeline.data.packing import packed_windows
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder
from pipeline.distributed.placement import cores_per_process, process_count, rank_device
from pipeline.distributed.ranks import Ranks, open_splits, started_as_rank
from pipeline.evaluate import result_lines
from pipeline.evaluate.baselines import learnt_counts, unigram_bits_per_byte
from pipeline.evaluate.bootstrap import intervals, units
from pipeline.evaluate.breakdown import Breakdown, BreakdownAccumulator, Counts
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.metrics import MetricSums, check_groups, group_numbers, run_tasks
from pipeline.evaluate.ranks import score_on_ranks
from pipeline.evaluate.samples import answer_questions, draw_samples
from pipeline.evaluate.tables import TaskItem, digests, write_tables
from pipeline.evaluate.text_model import text_model
from pipeline.model.architecture import LanguageModel
from pipeline.model.checkpoint import (
    Checkpoint,
    check_not_replaced,
    check_same_tokenizer,
    load_checkpoint,
    manifest_digest,
    used_model,
    weights_file,
)
from pipeline.model.device import keep_memory, use_threads
from pipeline.model.run_record import RunRecord, note_changes, read_record
from pipeline.model.scoring import Summary
from pipeline.plugin.components import Metric, TaskMetric
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.paths import Paths
    from pipeline.params.params import EvaluateParams, Params

KINDS = ["models", "samplers", "metrics"]


def run(params: Params, paths: Paths) -> None:
    """Reads the checkpoint and the splits; writes metrics/evaluate.json, reports/report.html and tables.

    Several processes (`runtime.processes`, torchrun or srun) share the held-out text.
    """
    processes = process_count(params.runtime)
    if processes == 1 and not started_as_rank():
        if publish := _run(params, paths, Ranks()):
            publish()
        return
    from pipeline.distributed.launch import run_on_ranks

    run_on_ranks("evaluate", lambda ranks: _run(params, paths, ranks), params, processes)


def _run(params: Params, paths: Paths, ranks: Ranks) -> Callable[[], None] | None:
    """Evaluates on all ranks; returns what rank 0 does alone: tasks, samples, report and publishing."""
    evaluate_params = params.evaluate
    digest = manifest_digest(paths.checkpoint)
    registry = Registry.load(paths.plugins, KINDS)
    samplers, metrics = (registry.chosen(kind, params) for kind in ("samplers", "metrics"))
    chosen = [("samplers", each) for each in samplers] + [("metrics", each) for each in metrics]
    identity = output_fingerprint(
        "pipeline.evaluate.stage",
        {
            **effective(evaluate_params.model_dump(mode="json")),
            "chosen": [(kind, each.name, plain_options(each)) for kind, each in chosen],
            "tasks": _task_files(paths.tasks) if any(isinstance(each, TaskMetric) for each in metrics) else {},
        },
        [paths.checkpoint / MANIFEST, paths.splits / MANIFEST, paths.metrics / "train.json"],
        registry.origins([*used_model(paths.checkpoint, registry), *((kind, each.name) for kind, each in chosen)]),
        paths.plugins,
    )
    ranks.check_same(identity, "another checkpoint, other data, params, code or plugins")
    if ranks.on_rank0(lambda: republished("evaluate", paths.reports, identity, paths)):
        return None
    use_threads(params.runtime.threads or cores_per_process(ranks))
    device = rank_device(params.runtime.device, ranks)
    sharded = params.runtime.strategy == "fsdp" and ranks.world_size > 1
    if params.runtime.keep_memory and not sharded:  # a block's full parameters must be freed after its use
        keep_memory()
    # Of a sharded model, the whole one is only mapped; rank 0 computes samples, tasks and the report with it.
    place = torch.device("cpu") if sharded else device
    checkpoint = load_checkpoint(paths.checkpoint, evaluate_params.weights, place, registry)
    splits = open_splits(paths.splits, ranks)
    record = read_record(paths.checkpoint)
    check_same_tokenizer(checkpoint, splits)
    _check_same_run(paths)
    note_changes(record, params, splits, paths)
    fact(
        "read",
        f"{paths.shown(paths.checkpoint)}: the {evaluate_params.weights} weights, of step {checkpoint.step:,}",
    )

    model = checkpoint.model
    if sharded:
        from pipeline.distributed.shard import shard

        model = shard(model, device, ranks)
    train_counts = learnt_counts(splits)
    numbers: dict[str, Any] = {}
    about: dict[str, Any] = {}
    breakdowns: dict[str, Breakdown] = {}
    for side in splits.names:
        if side != "train":
            text = _HeldOut.of(splits, side, evaluate_params, checkpoint, record)
            found = _evaluate(checkpoint, model, text, evaluate_params, metrics, train_counts, ranks)
            if found:
                numbers[side], about[side], breakdowns[side] = found
    if not ranks.is_rank0:
        return None

    def publish() -> None:
        check_groups(evaluate_params.groups, (each["groups"] for each in about.values()))
        ends = record.params["tokenize"].get("end_of_text") is not False
        items: list[TaskItem] = []
        model = text_model(checkpoint, splits, ends, evaluate_params.batch_size, paths.tasks)
        if tasks := run_tasks(metrics, model, items):
            numbers["tasks"] = tasks

        evaluation = Evaluation(
            checkpoint=checkpoint,
            splits=splits,
            metrics=numbers,
            about=_about(evaluate_params, checkpoint, record, about, paths)
            | ({"task_items": len(items)} if items else {}),
            breakdowns=breakdowns,
            samples=draw_samples(checkpoint, evaluate_params.generation, samplers),
            answered=answer_questions(
                checkpoint, splits, list(breakdowns)[-1], evaluate_params.generation, evaluate_params.batch_size
            ),
            record=record,
            params=effective(evaluate_params.model_dump(mode="json")),
        )
        before, chat = result_lines.read_before(paths, evaluation.about), bool(checkpoint.tokenizer.chat_template)
        with published_folder(paths.reports, paths) as folder:
            report = _write_report(evaluation, paths, folder)
            write_tables(breakdowns, items, evaluation.about, folder)
            write_json(folder / RECORD, {"identity": identity})
            write_json(folder / METRICS / "evaluate.json", numbers)
            check_not_replaced(paths.checkpoint, paths.shown(paths.checkpoint), digest, "evaluate")

        _print_results(evaluation, tasks)
        for line in result_lines.sample(evaluation):  # the report shows more
            say(line, indent=0)
        for sentence in result_lines.worse_than_unigram(numbers, about):
            say(f"note: {sentence}")
        fact(*result_lines.result(numbers, about, before))
        fact("wrote", f"{paths.shown(paths.metrics)}/evaluate.json, {paths.shown(paths.reports)}{report}")
        comparable = result_lines.comparable(about, before)
        fact("next", result_lines.next_commands(evaluate_params.generation.prompts, comparable, chat))

    return publish


def _task_files(folder: Path) -> dict[str, str]:
    """The digests of the files of tasks, by name."""
    check_symlinks(folder)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _check_same_run(paths: Paths) -> None:
    """Raises DataError if the files in metrics/ are not from the run that made the checkpoint."""
    for name in ("train.json", "history.tsv"):
        path = paths.metrics / name
        if not path.is_file() or path.read_bytes() != (paths.checkpoint / METRICS / name).read_bytes():
            raise DataError(
                f"{path} is not from the run that made {paths.checkpoint}: run `dvc checkout` to restore matching "
                "files, or `python -m pipeline train`"
            )


def _write_report(evaluation: Evaluation, paths: Paths, folder: Path) -> str:
    """Writes the report if pipeline/evaluate/report is installed; returns "/" and its name, else ""."""
    package = find_spec("pipeline.evaluate.report")
    if package is None or package.origin is None:  # an empty folder is a package without an origin
        return ""
    from pipeline.evaluate.report.write import write_report

    write_report(evaluation, paths, folder)
    return "/report.html"


def _stride(params: EvaluateParams, checkpoint: Checkpoint) -> int:
    return max(1, round(params.stride * checkpoint.model.architecture.shape.context_length))


def _about(
    params: EvaluateParams, checkpoint: Checkpoint, record: RunRecord, sides: dict[str, Any], paths: Paths
) -> dict[str, Any]:
    """The content of reports/evaluation.json: what was evaluated and how, and details of each text."""
    return {
        "step": checkpoint.step,
        "weights": checkpoint.weights,
        "weights_sha256": recorded_sha256(weights_file(paths.checkpoint, checkpoint.weights)),
        "context_length": checkpoint.model.architecture.shape.context_length,
        "stride": _stride(params, checkpoint),
        "stride_share": params.stride,
        **({"packed": True} if _packed(record) else {}),
        "tokenizer": {"name": checkpoint.tokenizer.name, "fingerprint": checkpoint.tokenizer.fingerprint},
        "sides": sides,
        "params": record.params,
    }


@dataclass(frozen=True)
class _HeldOut:
    """A held-out text: its ids, the windows in which they are scored, its documents, and the baseline xz."""

    side: str
    ids: MaskedIds
    windows: Sequence[EvaluationWindow]
    documents: Sequence[tuple[str, int]]
    xz: float | None

    @classmethod
    def of(
        cls, splits: TokenFolder, side: str, params: EvaluateParams, checkpoint: Checkpoint, record: RunRecord
    ) -> _HeldOut:
        """A text of `splits`; its windows hold whole documents if those of training did."""
        ids, context = splits.masked(side), checkpoint.model.architecture.shape.context_length
        windows: Sequence[EvaluationWindow]
        if _packed(record):
            ids = replace(ids, document_end=checkpoint.tokenizer.end_of_text)
            windows = packed_windows(ids, splits.documents(side), context)
        else:
            windows = evaluation_windows(len(ids), context, _stride(params, checkpoint))
        documents = [(entry.name, entry.start) for entry in splits.documents(side)]
        return cls(side, ids, windows, documents, splits.xz_bits_per_byte(side))


def _packed(record: RunRecord) -> bool:
    """Whether the windows of training held whole documents."""
    return record.params["train"].get("pack_documents") is True


def _evaluate(
    checkpoint: Checkpoint,
    model: LanguageModel,
    text: _HeldOut,
    params: EvaluateParams,
    metrics: Sequence[Metric],
    train_counts: Counts,
    ranks: Ranks,
) -> tuple[dict[str, float], dict[str, Any], Breakdown] | None:
    """Evaluates a text with `model`, the checkpoint's as it is laid out over the ranks.

    Returns:
        On rank 0, its numbers for evaluate.json, its entry in evaluation.json, and its breakdown; elsewhere None.
    """
    ids, tokenizer = text.ids, checkpoint.tokenizer
    context = checkpoint.model.architecture.shape.context_length
    summary = Summary(tokenizer.byte_lengths)
    accumulator = BreakdownAccumulator(ids, text.documents, train_counts, tokenizer.byte_lengths, context)
    sums = MetricSums(metrics, params.groups, text.documents, tokenizer.byte_lengths)
    if not accumulator.targets:
        raise DataError(
            f"{text.side} has nothing to score: none of its {len(ids):,} tokens is to be learnt; hold out more "
            f"documents (split.{text.side}), and split again"
        )
    with Progress(f"evaluating {text.side}", "token", accumulator.targets) as progress:
        for scores, positions in score_on_ranks(model, ids, text.windows, params.batch_size, sums, ranks):
            summary.add(scores)
            accumulator.add(scores, positions)
            progress.update(len(scores.targets), loss=f"{summary.loss:.4f}")
    if not ranks.is_rank0:
        return None
    breakdown = accumulator.breakdown()
    plain = summary.metrics()
    about = {
        **digests(ids, tokenizer),
        **({"scored": _scored(ids, summary.tokens, tokenizer)} if ids.learn is not None else {}),
        "accuracy": plain.pop("accuracy"),
        "interval": intervals(breakdown),
        "baselines": {
            "unigram": unigram_bits_per_byte(train_counts, ids, tokenizer),
            **({"xz": text.xz} if text.xz is not None else {}),
        },
        "groups": group_numbers(breakdown.documents, sums),
    }
    return {**plain, **sums.results(), "tokens": summary.tokens}, about, breakdown


def _scored(ids: MaskedIds, tokens: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Which part of a text was scored: the number of tokens, of how many, and what they are in words."""
    what = "what the assistant says" if tokenizer.chat_template else "what is to be learnt"
    return {"tokens": tokens, "of": len(ids), "what": what}


def _print_results(evaluation: Evaluation, tasks: Mapping[str, float]) -> None:
    """Prints the numbers of all texts as a table, then those of groups and of tasks."""
    sides = evaluation.about["sides"]
    drawn = {side: units(breakdown) for side, breakdown in evaluation.breakdowns.items()}
    over = {side: f"{len(scores):,} {what}" for side, (what, scores) in drawn.items()}
    for line in result_lines.table(evaluation.metrics, sides, over):
        say(line)
    for line in result_lines.scored(sides):
        fact("scored", line)
    for side, about in sides.items():
        for pattern, group in about["groups"].items():
            numbers = {name: value for name, value in group.items() if name != "documents"}
            fact(side, f"{pattern}: {_format_numbers(numbers)}")
    for number, line in enumerate(result_lines.tasks(tasks) if tasks else ()):
        fact("tasks" if not number else "", line)


def _format_numbers(values: Mapping[str, float]) -> str:
    return "  ".join(f"{key.replace('_', ' ')} {value:,.4f}" for key, value in values.items())
