"""Export the model and verify the export.

Writes artifacts/export.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.console import fact, say
from pipeline.core.errors import CheckpointError, PluginError, describe_exception
from pipeline.core.files import MANIFEST, recorded_sha256, write_atomically, write_json
from pipeline.core.fingerprint import output_fingerprint
from pipeline.core.params_diff import flatten
from pipeline.core.paths import EVALUATION, RECORD
from pipeline.core.publication import published_folder
from pipeline.core.republish import republished
from pipeline.core.values import read_values
from pipeline.data.parts import prompt_ids, turn_ends
from pipeline.data.tokens import TokenFolder
from pipeline.export.model_card import ModelCard
from pipeline.exporting import PROOF_TOKENS
from pipeline.model.architecture import LanguageModel
from pipeline.model.checkpoint import (
    Checkpoint,
    check_not_replaced,
    held_out_text,
    load_checkpoint,
    manifest_digest,
    used_model,
    weights_file,
)
from pipeline.model.device import use_threads
from pipeline.model.generate import generate
from pipeline.model.run_record import RunRecord, note_changes, read_record
from pipeline.plugin.calls import calling, label
from pipeline.plugin.components import ExportSource
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.paths import Paths
    from pipeline.params.params import Params

KINDS = ["models", "exporters"]
_PROMPT_TOKENS = 16
_SAMPLE_TOKENS = 80
_LONGEST_PROMPT = 4096


def run(params: Params, paths: Paths) -> None:
    """Reads the checkpoint and held-out text; writes artifacts/export.

    The first format is at the top level, each further one in a folder of its name, each with a verification.json.
    """
    export_params = params.export
    digest = manifest_digest(paths.checkpoint)
    registry = Registry.load(paths.plugins, KINDS)
    exporters = registry.chosen("exporters", params)
    identity = output_fingerprint(
        "pipeline.export.stage",
        {"weights": export_params.weights, "formats": [(each.name, plain_options(each)) for each in exporters]},
        [
            paths.checkpoint / MANIFEST,
            paths.splits / MANIFEST,
            paths.metrics / "evaluate.json",
            paths.reports / EVALUATION,
        ],
        registry.origins(
            [*used_model(paths.checkpoint, registry), *(("exporters", each.name) for each in exporters)]
        ),
        paths.plugins,
    )
    if republished("export", paths.export, identity, paths):
        return
    use_threads(params.runtime.threads)
    checkpoint = load_checkpoint(paths.checkpoint, export_params.weights, torch.device("cpu"), registry)
    splits = TokenFolder(paths.splits, "run `python -m pipeline split`")
    record = read_record(paths.checkpoint)
    note_changes(record, params, splits, paths)
    source = export_source(checkpoint, held_out_text(checkpoint, splits, PROOF_TOKENS))
    fact(
        "read", f"{paths.shown(paths.checkpoint)}: the {export_params.weights} weights, of step {checkpoint.step:,}"
    )

    proofs: dict[str, dict[str, Any]] = {}
    with published_folder(paths.export, paths) as folder:
        for number, exporter in enumerate(exporters):
            target = folder / exporter.name if number else folder
            target.mkdir(exist_ok=True)
            proof = _export_and_verify(exporter, source, target)
            proofs[exporter.name] = {
                "format": exporter.name,
                "weights": export_params.weights,
                "step": checkpoint.step,
                **proof,
            }
            write_json(target / "verification.json", proofs[exporter.name])
            shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in proof.values())
            named = zip((name.replace("_", " ") for name in proof), shown, strict=True)
            fact("verified", f"{exporter.name}: {', '.join(f'{name} {value}' for name, value in named)}")
            if proof.get("reader") == "none":
                say(f"         the reader of {exporter.name} is not installed: the files were only read back")
        write_json(folder / RECORD, {"identity": identity})
        write_atomically(folder / "README.md", _card(paths, checkpoint, record, splits, proofs).text())
        check_not_replaced(paths.checkpoint, paths.shown(paths.checkpoint), digest, "export")
    fact("wrote", f"{paths.shown(paths.export)}; its README.md says how to load it")


def _export_and_verify(exporter: Any, source: ExportSource, folder: Path) -> dict[str, Any]:
    """Exports into `folder` and verifies the export; returns the content of verification.json."""
    with refusals(exporter, "; nothing was published"):
        exporter.export(source, folder)
        if not any(folder.iterdir()):
            raise PluginError(f"{label(exporter)} wrote nothing")
        proof: dict[str, Any] = exporter.verify(source, folder)
        if not isinstance(proof, dict) or not proof.get("reader"):
            raise PluginError(
                f"{label(exporter)}: verify must return what it compared, with the name of its `reader`"
            )
        try:
            json.dumps(proof, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise PluginError(
                f"{label(exporter)}: verify returned values that are not valid JSON: {describe_exception(error)}"
            ) from None
    return proof


@contextmanager
def refusals(exporter: Any, then: str = "") -> Iterator[None]:
    """Context manager: turns an exporter's ValueError into a one-line error. `then` is added to the message.

    Raises:
        CheckpointError: the format does not support the model, or the export does not reproduce the checkpoint.
        PluginError: the exporter raised another exception.
    """
    with calling(exporter):
        try:
            yield
        except ValueError as error:
            why = " ".join(str(error).split())
            choose = "choose other formats in export.formats.use, or [] for none"
            raise CheckpointError(f"export {exporter.name}: {why}{then}: {choose}") from error


def _card(
    paths: Paths,
    checkpoint: Checkpoint,
    record: RunRecord,
    splits: TokenFolder,
    proofs: dict[str, dict[str, Any]],
) -> ModelCard:
    prompt, continuation = _sample(checkpoint, splits)
    architecture = checkpoint.model.architecture
    return ModelCard(
        config=architecture.config.flatten() | {"parameters": architecture.parameter_count},
        corpus=str(flatten(record.params).get("tokenize.corpus.name", "")),
        sides=splits.meta["files"],
        tokenizer=checkpoint.tokenizer.name,
        weights=checkpoint.weights,
        step=checkpoint.step,
        metrics=_metrics(paths, checkpoint.weights),
        prompt=prompt,
        continuation=continuation,
        params=record.params,
        proofs=proofs,
        versions=record.versions,
        chat=bool(checkpoint.tokenizer.chat_template),
    )


def _metrics(paths: Paths, weights: str) -> dict[str, Any] | None:
    """The results and details of the evaluation of exactly these weights; None if there is no such evaluation."""
    about, measured = paths.reports / EVALUATION, paths.metrics / "evaluate.json"
    if not about.is_file() or not measured.is_file():
        return None
    fix = "run `python -m pipeline evaluate`"
    evaluated, metrics = (read_values(path, dict[str, Any], fix) for path in (about, measured))
    if evaluated.get("weights_sha256") != recorded_sha256(weights_file(paths.checkpoint, weights)):
        return None
    sides = evaluated.get("sides")
    described = sides if isinstance(sides, dict) else {}
    merged: dict[str, Any] = {"stride": evaluated.get("stride"), "packed": evaluated.get("packed") is True}
    for side, numbers in metrics.items():
        if isinstance(numbers, dict):
            described_side = described.get(side)
            merged[side] = {**(described_side if isinstance(described_side, dict) else {}), **numbers}
    return merged


def _sample(checkpoint: Checkpoint, splits: TokenFolder) -> tuple[str, str]:
    """The beginning of the held-out text, and a continuation sampled from the model."""
    tokenizer = checkpoint.tokenizer
    end, length = tokenizer.end_of_text, _PROMPT_TOKENS
    if tokenizer.chat_template and splits.has_mask("val"):  # up to the first answer
        learnt = splits.masked("val").learnt(0, _LONGEST_PROMPT)
        end, length = list(turn_ends(tokenizer))[-1], int(learnt.argmax()) or _PROMPT_TOKENS
    prompt = [int(token) for token in splits.ids("val")[:length]]
    ends = [position for position, token in enumerate(prompt) if token == tokenizer.end_of_text and position]
    prompt = prompt[: ends[0]] if ends else prompt
    drawn = generate(
        checkpoint.model, torch.tensor([prompt]), _SAMPLE_TOKENS, [lambda logits, tokens: logits / 0.8],
        torch.Generator().manual_seed(0), end=end,
    )  # fmt: skip
    return tokenizer.decode(prompt), tokenizer.decode([int(token) for token in drawn])


class _Logits(torch.nn.Module):
    """Wraps a model so that it returns only logits."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """ids [B, T] → logits [B, T, V]."""
        return self.model(tokens).logits  # type: ignore[no-any-return]


def export_source(checkpoint: Checkpoint, text: str) -> ExportSource:
    """The `ExportSource` of a checkpoint. Head and embedding are cut to the vocabulary, without padding rows."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    vocab_size = model.architecture.shape.vocab_size
    weights = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}  # no copy of float32
    for name in ("token_embedding.weight", "head.weight"):
        if name in weights:
            weights[name] = weights[name][:vocab_size]

    module = _Logits(model).eval()

    @torch.inference_mode()
    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return module(tokens)  # type: ignore[no-any-return]

    def greedy(ids: Sequence[int], count: int) -> list[int]:
        return [int(token) for token in generate(model, torch.tensor([list(ids)]), count)]

    return ExportSource(
        config=model.architecture.config.flatten(),
        weights=weights,
        model=module,
        pattern=tokenizer.pattern,
        ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_tokens,
        end_of_text=tokenizer.end,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        logits=logits,
        greedy=greedy,
        text=text,
        chat=tokenizer.chat if tokenizer.chat_template else None,
        chat_ids=lambda messages: prompt_ids(messages, tokenizer),
    )
