"""plugins check: runs the contract suite on the components of a plugin file."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.authoring import testing
from pipeline.authoring.single import load_file
from pipeline.core.console import say
from pipeline.core.errors import PluginError
from pipeline.data.tokens import TokenFolder
from pipeline.export.stage import export_source
from pipeline.model.architecture import Architecture
from pipeline.model.checkpoint import Checkpoint, held_out_text, load_checkpoint
from pipeline.plugin.calls import calling
from pipeline.plugin.components import ExportSource, Model, ModelShape
from pipeline.plugin.registry import Registry
from pipeline.tokenize.vocabulary import train_bpe

if TYPE_CHECKING:
    from pipeline.core.paths import Paths

_TEXT = "The contract suite verifies an export with this text if there is no other.\n"
_PROOF_TOKENS = 2_000


def run(paths: Paths, path: Path, root: Path | None = None) -> None:
    """Runs the contract suite on every component that `path` registers, and prints one line for each.

    Corpora read `root` (default: data/raw). Eval callbacks run in a temporary folder. Exporters get a model of each
    architecture: the project's trained model if there is one, else a tiny random one. An exporter must support at
    least one of them.

    Raises:
        PluginError: `path` is not a plugin, or a component breaks a rule or raises an exception.
    """
    for kind, entry in load_file(path, paths.plugins):
        shown = f"{kind.singular} {entry.component.name} ({entry.source})"
        sources = _sources(paths) if kind.plural == "exporters" else []
        with calling(entry.component):
            try:
                notes = _check(kind.plural, entry.component, root or paths.raw, paths.tasks, sources)
            except AssertionError as error:
                if not str(error):
                    raise
                raise PluginError(f"the {shown} breaks its contract: {error}") from error
        say("; ".join([f"ok  {shown}", *notes]))


def _check(plural: str, component: Any, root: Path, tasks: Path, sources: list[ExportSource]) -> list[str]:
    """Runs the contract suite on a component; returns notes for its line."""
    match plural:
        case "corpora":
            testing.check_corpus(component, root)
        case "models":
            testing.check_model(component)
        case "losses":
            testing.check_loss(component)
        case "optimizers":
            testing.check_optimizer(component)
        case "schedules":
            testing.check_schedule(component)
        case "batch_samplers":
            testing.check_batch_sampler(component)
        case "eval_callbacks":
            with (
                tempfile.TemporaryDirectory() as folder,
                contextlib.chdir(folder),
            ):  # trackers write into the current folder
                testing.check_eval_callback(component)
        case "samplers":
            testing.check_sampler(component)
        case "metrics":
            testing.check_metric(component, tasks)
        case "exporters":
            return _check_exporter(component, sources)
    return []


def _check_exporter(component: Any, sources: list[ExportSource]) -> list[str]:
    """Checks an exporter with each model; returns its reasons for the models that it refuses. It must accept
    one."""
    refusals: list[str] = []
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:
            try:
                testing.check_exporter(component, source, Path(folder))
            except testing.Refused as refusal:
                refusals.append(" ".join(str(refusal).split()))
    assert len(refusals) < len(sources), "; ".join(refusals)
    return refusals


def _sources(paths: Paths) -> list[ExportSource]:
    """A model of each architecture: the project's trained model if there is one, else a tiny one."""
    registry = Registry.load(paths.plugins, ["models"])
    names = registry.names("models")
    sources = {name: tiny_source(registry.build("models", name, {}, "model")) for name in names}
    if paths.checkpoint.is_dir() and paths.splits.is_dir():
        checkpoint = load_checkpoint(paths.checkpoint, "best", torch.device("cpu"), registry)
        splits = TokenFolder(paths.splits, "run `python -m pipeline split`")
        text = held_out_text(checkpoint, splits, _PROOF_TOKENS)
        sources[checkpoint.model.architecture.component.name] = export_source(checkpoint, text)
    return list(sources.values())


def tiny_source(component: Model) -> ExportSource:
    """The input of an exporter with a tiny random model."""
    tokenizer = train_bpe([_TEXT], 280)
    shape = ModelShape(
        vocab_size=tokenizer.vocab_size, context_length=16, n_layers=2, n_heads=2, emb_dim=16, dropout=0.0,
        pad_vocab_to=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Architecture(component, shape).make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(
                    torch.randn_like(parameter), alpha=0.1
                )  # without this, the logits of all tokens would be nearly equal
    return export_source(Checkpoint(model, tokenizer, 0, "last"), _TEXT)
