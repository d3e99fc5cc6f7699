"""plugins check: the contract suite on the components of one plugin file."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from pipeline.authoring import testing
from pipeline.authoring.single import load_file
from pipeline.core.console import say
from pipeline.core.errors import PluginError
from pipeline.data.tokens import TokenFolder
from pipeline.export.stage import export_source
from pipeline.model.checkpoint import Checkpoint, load_checkpoint
from pipeline.model.config import Family, GPTConfig
from pipeline.model.gpt import GPT
from pipeline.model.held_out import held_out_text
from pipeline.params.params import ModelParams
from pipeline.plugin.calls import calling
from pipeline.plugin.components import ExportSource
from pipeline.tokenize.vocabulary import train_bpe

if TYPE_CHECKING:
    from pipeline.core.paths import Paths

_TEXT = "The contract suite proves an export with this text, when there is no other.\n"
_PROOF_TOKENS = 2_000


def run(paths: Paths, path: Path, root: Path | None = None) -> None:
    """Runs the contract suite of its kind on every component that `path` registers, and prints a line for each.

    Corpora read `root` (data/raw unless given); eval callbacks run in a temporary folder; exporters get a model of
    each family, the project's checkpoint where there is one, else a tiny random model, and may refuse all but one.

    Raises:
        PluginError: `path` is no plugin, or one of its components breaks a rule or raises; names both.
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
                raise PluginError(f"the {shown} breaks its contract: {error}") from error  # the suite's rule
        say("; ".join([f"ok  {shown}", *notes]))


def _check(plural: str, component: Any, root: Path, tasks: Path, sources: list[ExportSource]) -> list[str]:
    """Runs the contract suite on a component; returns notes for the line that is printed."""
    match plural:
        case "corpora":
            testing.check_corpus(component, root)
        case "losses":
            testing.check_loss(component)
        case "optimizers":
            testing.check_optimizer(component)
        case "schedules":
            testing.check_schedule(component)
        case "eval_callbacks":
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # it may write beside the runs
                testing.check_eval_callback(component)
        case "samplers":
            testing.check_sampler(component)
        case "metrics":
            testing.check_metric(component, tasks)
        case "exporters":
            return _check_exporter(component, sources)
    return []


def _check_exporter(component: Any, sources: list[ExportSource]) -> list[str]:
    """Returns its reasons for the families that it refuses; it must write at least one."""
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
    """A model of each family: the project's own where it has one, else a tiny one."""
    sources = {family: tiny_source(family) for family in get_args(ModelParams.model_fields["family"].annotation)}
    if paths.checkpoint.is_dir() and paths.splits.is_dir():
        checkpoint = load_checkpoint(paths.checkpoint, "best", torch.device("cpu"))
        splits = TokenFolder(paths.splits, "run `python -m pipeline split`")
        text = held_out_text(checkpoint, splits, _PROOF_TOKENS)
        sources[checkpoint.model.config.family] = export_source(checkpoint, text)
    return list(sources.values())


def tiny_source(family: Family = "gpt2") -> ExportSource:
    """What an exporter receives, with a tiny model of random weights: enough to prove any export."""
    tokenizer = train_bpe([_TEXT], 280)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context_length=16, n_layers=2, n_heads=2, emb_dim=16, dropout=0.0,
        qkv_bias=family == "gpt2", tied_head=False, init="modern" if family == "modern" else "gpt2",
        pad_vocab_to=64, family=family, n_kv_heads=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)  # untrained, its logits would hardly differ
    return export_source(Checkpoint(model, tokenizer, 0, "last"), _TEXT)
