"""evaluate: every held-out token once, baselines beside it, samples, and the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.console import Progress, fact, say
from pipeline.data.batches import evaluation_windows
from pipeline.data.tokens import TokenFolder
from pipeline.errors import CheckpointError, DataError
from pipeline.evaluation.baselines import unigram_bits_per_byte, xz_bits_per_byte
from pipeline.evaluation.bootstrap import intervals, units
from pipeline.evaluation.breakdown import Breakdown, Counts, Tally, token_counts
from pipeline.evaluation.nll import Summary, score
from pipeline.evaluation.report import Report, Sample, write_report
from pipeline.evaluation.tables import digests, write_tables
from pipeline.files import published_folder, read_json, write_json
from pipeline.model.checkpoint import SAMPLES, Checkpoint, load_checkpoint
from pipeline.model.device import choose_device, use_threads
from pipeline.model.generate import generate
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.params import EvaluateParams, Params
    from pipeline.paths import Paths

_MEND = "run `python -m pipeline train`"


def run(params: Params, paths: Paths) -> None:
    """Reads the checkpoint and the splits; writes metrics/evaluate.json, reports/report.html and its tables."""
    own = params.evaluate
    registry = Registry.load(paths.plugins, ["samplers"])
    samplers = registry.build_all("samplers", own.samplers.use, own.samplers.options, "evaluate.samplers")
    use_threads(params.runtime.threads)
    checkpoint = load_checkpoint(paths.checkpoint, own.weights, choose_device(params.runtime.device))
    splits = TokenFolder(paths.splits, "run `python -m pipeline split`")
    check_same_tokenizer(checkpoint, splits)
    history = _read_history(paths.metrics / "history.tsv")
    performance = _read_performance(paths.metrics / "performance.json")
    fact("read", f"{paths.shown(paths.checkpoint)}: the {own.weights} weights, of step {checkpoint.step:,}")

    metrics: dict[str, Any] = {"step": checkpoint.step, "stride": _stride(own, checkpoint)}
    train_counts = token_counts(splits.ids("train"), checkpoint.tokenizer.vocab_size)
    breakdowns: dict[str, Breakdown] = {}
    for side in splits.names:
        if side != "train":
            metrics[side], breakdowns[side] = _evaluate(checkpoint, splits, side, own, train_counts)

    samples = [
        _sample(checkpoint, prompt, own, samplers, own.generation.seed + number)
        for number, prompt in enumerate(own.generation.prompts)
    ]
    report = Report(
        metrics=metrics,
        weights=own.weights,
        model=checkpoint.model.config.to_dict() | {"parameters": checkpoint.model.parameter_count()},
        history=history,
        performance=performance,
        samples=samples,
        samples_in_training=_samples_in_training(paths.checkpoint / SAMPLES),
        params={
            name: getattr(params, name).model_dump(mode="json")
            for name in ("tokenize", "split", "model", "train", "evaluate")
        },
        versions={"torch": torch.__version__},
    )
    with published_folder(paths.reports) as folder:
        write_report(report, folder)
        write_tables(breakdowns, _about(own, checkpoint, splits), folder)
        write_json(paths.metrics / "evaluate.json", metrics)

    for side in ("val", "test"):
        if side in metrics:
            _say_numbers(side, metrics[side], breakdowns[side])
    for sample in samples:
        say(f"\n{sample.prompt}{sample.continuation}\n")
    fact("wrote", f"{paths.shown(paths.metrics)}/evaluate.json, {paths.shown(paths.reports)}/report.html")


def check_same_tokenizer(checkpoint: Checkpoint, splits: TokenFolder) -> None:
    """Raises DataError when the splits were made by another tokenizer than the one trained with."""
    trained, split = checkpoint.tokenizer.fingerprint, splits.tokenizer.fingerprint
    if trained != split:
        raise DataError(
            f"{splits.folder}: made by another tokenizer ({split[:12]}) than the model was trained with "
            f"({trained[:12]}): train again"
        )


def _stride(params: EvaluateParams, checkpoint: Checkpoint) -> int:
    return max(1, round(params.stride * checkpoint.model.config.context_length))


def _about(params: EvaluateParams, checkpoint: Checkpoint, splits: TokenFolder) -> dict[str, Any]:
    """What `pipeline compare` must know of this evaluation, to say whether another may be held against it."""
    return {
        "step": checkpoint.step,
        "weights": checkpoint.weights,
        "context_length": checkpoint.model.config.context_length,
        "stride": _stride(params, checkpoint),
        "stride_share": params.stride,
        "tokenizer": {"name": checkpoint.tokenizer.name, "fingerprint": checkpoint.tokenizer.fingerprint},
        "sides": {
            side: digests(splits.ids(side), checkpoint.tokenizer) for side in splits.names if side != "train"
        },
    }


def _evaluate(
    checkpoint: Checkpoint, splits: TokenFolder, side: str, params: EvaluateParams, train_counts: Counts
) -> tuple[dict[str, Any], Breakdown]:
    ids, tokenizer, context = splits.ids(side), checkpoint.tokenizer, checkpoint.model.config.context_length
    windows = evaluation_windows(len(ids), context, _stride(params, checkpoint))
    summary = Summary(tokenizer.byte_lengths)
    tally = Tally(ids, splits.documents(side), train_counts, tokenizer.byte_lengths, context)
    with Progress(f"evaluating {side}", "token", len(ids) - 1) as progress:
        for scores in score(checkpoint.model, ids, windows, params.batch_size, closely=True):
            summary.add(scores)
            tally.add(scores)
            progress.update(len(scores.targets), loss=f"{summary.loss:.4f}")
    breakdown = tally.breakdown()
    numbers = {
        **summary.metrics(),
        "accuracy_top5": breakdown.accuracy_top5,
        "calibration_error": breakdown.calibration_error,
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


def _sample(checkpoint: Checkpoint, prompt: str, params: EvaluateParams, samplers: list[Any], seed: int) -> Sample:
    device = checkpoint.model.head_weight.device
    start = [int(token) for token in checkpoint.tokenizer.encode(prompt)] or [checkpoint.tokenizer.end_of_text]
    tokens = torch.tensor([start], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    drawn = generate(
        checkpoint.model,
        tokens,
        params.generation.max_new_tokens,
        samplers,
        generator,
        end=checkpoint.tokenizer.end_of_text,
    )
    return Sample(prompt, checkpoint.tokenizer.decode([int(each) for each in drawn]), params.samplers.use)


def _read_history(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter="\t")
            rows = [{name: float(value) for name, value in row.items() if value} for row in reader]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {_MEND}") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged ({error}): {_MEND}") from None
    if not rows or any("step" not in row for row in rows):
        raise CheckpointError(f"{path} is damaged (it needs rows, each with its step): {_MEND}")
    return rows


def _read_performance(path: Path) -> dict[str, float]:
    values = read_json(path, _MEND)
    needed = ("seconds", "tokens_per_sec")
    if not isinstance(values, dict) or not all(isinstance(values.get(name), int | float) for name in needed):
        raise CheckpointError(f"{path} is damaged (it needs the numbers {' and '.join(needed)}): {_MEND}")
    return values


def _samples_in_training(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
