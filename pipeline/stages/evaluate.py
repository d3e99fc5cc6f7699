"""evaluate: every held-out token once, baselines beside it, samples, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.console import Progress, fact, say
from pipeline.data.batches import evaluation_windows
from pipeline.data.tokens import TokenFolder
from pipeline.environment import versions
from pipeline.errors import DataError
from pipeline.evaluation.baselines import unigram_bits_per_byte, xz_bits_per_byte
from pipeline.evaluation.nll import Summary, score
from pipeline.evaluation.report.attention import read_attention
from pipeline.evaluation.report.excerpt import read_excerpt
from pipeline.evaluation.report.page import write_report
from pipeline.evaluation.report.records import Report, Sample
from pipeline.evaluation.report.training import read_training
from pipeline.files import MANIFEST, published_folder, read_json, write_json
from pipeline.model.checkpoint import BEST, LAST, Checkpoint, load_checkpoint
from pipeline.model.device import choose_device, use_threads
from pipeline.model.generate import continuations
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.params import EvaluateParams, Params
    from pipeline.paths import Paths


def run(params: Params, paths: Paths) -> None:
    """Reads the checkpoint and the splits; writes metrics/evaluate.json and reports/report.html."""
    own = params.evaluate
    registry = Registry.load(paths.plugins, ["samplers"])
    samplers = registry.build_all("samplers", own.samplers.use, own.samplers.options, "evaluate.samplers")
    use_threads(params.runtime.threads)
    checkpoint = load_checkpoint(paths.checkpoint, own.weights, choose_device(params.runtime.device))
    splits = TokenFolder(paths.splits, "run `python -m pipeline split`")
    check_same_tokenizer(checkpoint, splits)
    training = read_training(paths.metrics, paths.checkpoint)
    fact("read", f"{paths.shown(paths.checkpoint)}: the {own.weights} weights, of step {checkpoint.step:,}")

    metrics: dict[str, Any] = {"step": checkpoint.step, "stride": _stride(own, checkpoint)}
    for side in splits.names:
        if side != "train":
            metrics[side] = _evaluate(checkpoint, splits, side, own)

    samples = _samples(checkpoint, own, samplers)
    held_out = [side for side in ("val", "test") if side in metrics]
    excerpts = [read_excerpt(checkpoint, splits, side, {}) for side in held_out]
    report = Report(
        metrics=metrics,
        weights=own.weights,
        model=checkpoint.model.config.to_dict() | {"parameters": checkpoint.model.parameter_count()},
        training=training,
        samples=samples,
        excerpts=excerpts,
        attention=read_attention(checkpoint, splits.ids(held_out[-1])),
        sides={},
        data=splits.meta["files"],
        params={
            name: getattr(params, name).model_dump(mode="json")
            for name in ("tokenize", "split", "model", "train", "evaluate")
        },
        versions=versions(),
        identity={
            "weights": _sha256(paths.checkpoint / (BEST if own.weights == "best" else LAST)),
            "tokenizer": checkpoint.tokenizer.fingerprint,
            **{f"{side}.bin": _sha256(paths.splits / f"{side}.bin") for side in splits.names},
        },
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
    for first, *_ in samples:
        say(f"\n{first.prompt}{first.continuation}\n")
    fact("wrote", f"{paths.shown(paths.metrics)}/evaluate.json, {paths.shown(paths.reports)}/report.html")


def check_same_tokenizer(checkpoint: Checkpoint, splits: TokenFolder) -> None:
    """Raises DataError when the splits were made by another tokenizer than the one trained with."""
    trained, split = checkpoint.tokenizer.fingerprint, splits.tokenizer.fingerprint
    if trained != split:
        raise DataError(
            f"{splits.folder}: made by another tokenizer ({split[:12]}) than the model was trained with "
            f"({trained[:12]}): train again"
        )


def _sha256(path: Path) -> str:
    """What the manifest beside a file holds of it; it was checked when the file was read."""
    digest: str = read_json(path.parent / MANIFEST, "")["files"][path.name]["sha256"]
    return digest


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


def _samples(checkpoint: Checkpoint, params: EvaluateParams, samplers: list[Any]) -> list[list[Sample]]:
    """For each prompt, what the chosen samplers give, what the model itself does, and its likeliest text."""
    own = params.generation
    if not own.prompts:
        return []
    device, tokenizer = checkpoint.model.head_weight.device, checkpoint.tokenizer
    starts = [
        [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text] for prompt in own.prompts
    ]

    def drawn(how: str, samplers: list[Any], random: bool = True) -> list[Sample]:
        seeds = range(own.seed, own.seed + len(starts))
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds] if random else None
        texts = continuations(
            checkpoint.model, starts, own.max_new_tokens, samplers, generators, tokenizer.end_of_text
        )
        return [
            Sample(prompt, tokenizer.decode(text), how) for prompt, text in zip(own.prompts, texts, strict=True)
        ]

    ways = [drawn("the model's own distribution", []), drawn("the likeliest token each time", [], random=False)]
    if samplers:
        ways.insert(0, drawn(", ".join(params.samplers.use), samplers))
    return [list(group) for group in zip(*ways, strict=True)]
