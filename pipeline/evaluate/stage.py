"""evaluate: every held-out token once, baselines beside it, samples, and the report."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.core.console import Progress, fact, say
from pipeline.core.errors import DataError
from pipeline.core.files import MANIFEST, recorded_sha256, write_json
from pipeline.core.fingerprint import output_fingerprint
from pipeline.core.paths import METRICS, RECORD
from pipeline.core.publication import published_folder
from pipeline.core.record import effective
from pipeline.core.republish import republished
from pipeline.data.batches import evaluation_windows
from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.baselines import unigram_bits_per_byte, xz_bits_per_byte
from pipeline.evaluate.bootstrap import intervals, units
from pipeline.evaluate.breakdown import Breakdown, BreakdownAccumulator, Counts, token_counts
from pipeline.evaluate.details import score_in_detail
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.samples import draw_samples
from pipeline.evaluate.tables import digests, write_tables
from pipeline.model.checkpoint import Checkpoint, load_checkpoint, used_model, weights_file
from pipeline.model.device import choose_device, use_threads
from pipeline.model.held_out import check_same_tokenizer
from pipeline.model.made_by import note_changes, read_record
from pipeline.model.scoring import Summary
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.paths import Paths
    from pipeline.params.params import EvaluateParams, Params

KINDS = ["models", "samplers"]


def run(params: Params, paths: Paths) -> None:
    """Reads the checkpoint and the splits; writes metrics/evaluate.json, reports/report.html and its tables."""
    own = params.evaluate
    registry = Registry.load(paths.plugins, KINDS)
    samplers = registry.build_all("samplers", own.samplers.use, own.samplers.options, "evaluate.samplers")
    identity = output_fingerprint(
        "pipeline.evaluate.stage",
        {
            **effective(own.model_dump(mode="json")),
            "samplers": [(each.name, plain_options(each)) for each in samplers],
        },
        [paths.checkpoint / MANIFEST, paths.splits / MANIFEST, paths.metrics / "train.json"],
        registry.origins(
            [*used_model(paths.checkpoint, registry), *(("samplers", each.name) for each in samplers)]
        ),
        paths.plugins,
    )
    if republished("evaluate", paths.reports, identity, paths):
        return
    use_threads(params.runtime.threads)
    checkpoint = load_checkpoint(paths.checkpoint, own.weights, choose_device(params.runtime.device), registry)
    splits = TokenFolder(paths.splits, "run `python -m pipeline split`")
    record = read_record(paths.checkpoint)
    check_same_tokenizer(checkpoint, splits)
    _check_same_run(paths)
    note_changes(record, params, splits, paths)
    fact("read", f"{paths.shown(paths.checkpoint)}: the {own.weights} weights, of step {checkpoint.step:,}")

    metrics: dict[str, Any] = {"step": checkpoint.step, "stride": _stride(own, checkpoint)}
    train_counts = token_counts(splits.ids("train"), checkpoint.tokenizer.vocab_size)
    breakdowns: dict[str, Breakdown] = {}
    for side in splits.names:
        if side != "train":
            metrics[side], breakdowns[side] = _evaluate(checkpoint, splits, side, own, train_counts)

    evaluation = Evaluation(
        checkpoint=checkpoint,
        splits=splits,
        metrics=metrics,
        breakdowns=breakdowns,
        samples=draw_samples(checkpoint, own.generation, samplers),
        record=record,
        params=effective(own.model_dump(mode="json")),
    )
    with published_folder(paths.reports, paths) as folder:
        report = _write_report(evaluation, paths, folder)
        write_tables(breakdowns, _about(own, evaluation, paths), folder)
        write_json(folder / RECORD, {"identity": identity})
        write_json(folder / METRICS / "evaluate.json", metrics)

    for side, breakdown in breakdowns.items():
        _say_numbers(side, metrics[side], breakdown)
    for first, *_ in evaluation.samples:
        say(f"\n{first.prompt}{first.continuation}\n")
    fact("wrote", f"{paths.shown(paths.metrics)}/evaluate.json, {paths.shown(paths.reports)}{report}")


def _check_same_run(paths: Paths) -> None:
    """Raises DataError when metrics/ does not hold what the run that made the checkpoint wrote."""
    for name in ("train.json", "history.tsv"):
        path = paths.metrics / name
        if not path.is_file() or path.read_bytes() != (paths.checkpoint / METRICS / name).read_bytes():
            raise DataError(
                f"{path} is not of the run that made {paths.checkpoint}: run `dvc checkout`, which brings what "
                "belongs together, or run `python -m pipeline train`"
            )


def _write_report(evaluation: Evaluation, paths: Paths, folder: Path) -> str:
    """Writes the report, where this installation has report/; returns its name in the folder, or nothing."""
    package = find_spec("pipeline.evaluate.report")
    if package is None or package.origin is None:  # an empty folder is a package without an origin
        return ""
    from pipeline.evaluate.report.write import write_report

    write_report(evaluation, paths, folder)
    return "/report.html"


def _stride(params: EvaluateParams, checkpoint: Checkpoint) -> int:
    return max(1, round(params.stride * checkpoint.model.architecture.shape.context_length))


def _about(params: EvaluateParams, evaluation: Evaluation, paths: Paths) -> dict[str, Any]:
    """What `pipeline compare` must know of this evaluation, to say whether another may be compared with it."""
    checkpoint, splits = evaluation.checkpoint, evaluation.splits
    return {
        "step": checkpoint.step,
        "weights": checkpoint.weights,
        "weights_sha256": recorded_sha256(weights_file(paths.checkpoint, checkpoint.weights)),
        "context_length": checkpoint.model.architecture.shape.context_length,
        "stride": _stride(params, checkpoint),
        "stride_share": params.stride,
        "tokenizer": {"name": checkpoint.tokenizer.name, "fingerprint": checkpoint.tokenizer.fingerprint},
        "sides": {
            side: digests(splits.ids(side), checkpoint.tokenizer) for side in splits.names if side != "train"
        },
        "params": evaluation.record.params,
    }


def _evaluate(
    checkpoint: Checkpoint, splits: TokenFolder, side: str, params: EvaluateParams, train_counts: Counts
) -> tuple[dict[str, Any], Breakdown]:
    ids, tokenizer, context = (
        splits.ids(side),
        checkpoint.tokenizer,
        checkpoint.model.architecture.shape.context_length,
    )
    windows = evaluation_windows(len(ids), context, _stride(params, checkpoint))
    summary = Summary(tokenizer.byte_lengths)
    accumulator = BreakdownAccumulator(ids, splits.documents(side), train_counts, tokenizer.byte_lengths, context)
    with Progress(f"evaluating {side}", "token", len(ids) - 1) as progress:
        for scores, details in score_in_detail(checkpoint.model, ids, windows, params.batch_size):
            summary.add(scores)
            accumulator.add(scores, details)
            progress.update(len(scores.targets), loss=f"{summary.loss:.4f}")
    breakdown = accumulator.breakdown()
    numbers = {
        **summary.metrics(),
        **breakdown.numbers,
        "interval": intervals(breakdown),
        "tokens": summary.tokens,
        "baselines": {
            "unigram": unigram_bits_per_byte(train_counts, ids, tokenizer),
            "xz": xz_bits_per_byte(splits.ids("train"), ids, tokenizer),
        },
    }
    return numbers, breakdown


def _say_numbers(side: str, numbers: dict[str, Any], breakdown: Breakdown) -> None:
    """Prints a side's numbers, its intervals and its baselines, a line each."""
    what, drawn = units(breakdown)
    ranges = {name: f"{ends['low']:,.4f} to {ends['high']:,.4f}" for name, ends in numbers["interval"].items()}
    say(f"{side:<9}{_listed({name: value for name, value in numbers.items() if isinstance(value, float)})}")
    if ranges:
        say(f"         95% over {len(drawn):,} {what}: {_listed(ranges)}")
    say(f"         baselines in bits per byte: {_listed(numbers['baselines'])}")


def _listed(values: dict[str, Any]) -> str:
    return "  ".join(
        f"{key} {value if isinstance(value, str) else f'{value:,.4f}'}" for key, value in values.items()
    )
