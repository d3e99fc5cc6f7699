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
from pipeline.evaluation.nll import Summary, score
from pipeline.evaluation.report import Report, Sample, write_report
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
    """Reads the checkpoint and the splits; writes metrics/evaluate.json and reports/report.html."""
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
    for side in splits.names:
        if side != "train":
            metrics[side] = _evaluate(checkpoint, splits, side, own)

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
        write_json(paths.metrics / "evaluate.json", metrics)

    for side in ("val", "test"):
        if side in metrics:
            say(
                f"{side:<8} "
                + "  ".join(
                    f"{name} {value:,.4f}" for name, value in metrics[side].items() if isinstance(value, float)
                )
            )
            beside = "  ".join(f"{name} {value:.4f}" for name, value in metrics[side]["baselines"].items())
            say(f"         baselines in bits per byte: {beside}")
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


def _evaluate(checkpoint: Checkpoint, splits: TokenFolder, side: str, params: EvaluateParams) -> dict[str, Any]:
    ids, tokenizer = splits.ids(side), checkpoint.tokenizer
    windows = evaluation_windows(len(ids), checkpoint.model.config.context_length, _stride(params, checkpoint))
    summary = Summary(tokenizer.byte_lengths)
    with Progress(f"evaluating {side}", "token", len(ids) - 1) as progress:
        for scores in score(checkpoint.model, ids, windows, params.batch_size):
            summary.add(scores)
            progress.update(len(scores.targets), loss=f"{summary.loss:.4f}")
    train = splits.ids("train")
    return {
        **summary.metrics(),
        "tokens": summary.tokens,
        "baselines": {
            "unigram": unigram_bits_per_byte(train, ids, tokenizer),
            "xz": xz_bits_per_byte(train, ids, tokenizer),
        },
    }


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
