"""check: finds problems before a run, and estimates its memory and time."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.commands.estimate import say_time
from pipeline.commands.sample import check_beginnings, held_out, tokenize_sample
from pipeline.commands.trial import Trial, TrySteps, last_phase, trial_process
from pipeline.commands.versions import deciding_packages, note_untracked
from pipeline.core.console import fact, say
from pipeline.core.environment import environment_changes
from pipeline.core.errors import PipelineError, explain_os_error
from pipeline.core.files import format_bytes
from pipeline.core.paths import Paths
from pipeline.core.processor import cores
from pipeline.data.tokens import TokenFolder
from pipeline.distributed.placement import process_count
from pipeline.export.stage import export_source, refusals
from pipeline.model.architecture import Architecture
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.device import choose_device, memory_of
from pipeline.plugin.components import KINDS
from pipeline.plugin.registry import Registry
from pipeline.tokenize.stage import check_links
from pipeline.train.components import Components
from pipeline.train.data import TrainingData, check_length
from pipeline.train.length import rank_micro_batch_size
from pipeline.train.memory_check import check_fits, memory_per_process
from pipeline.train.stage import pretrained, say_long_warmup

if TYPE_CHECKING:
    from pipeline.params.params import Params


class _Findings:
    """Counts problems instead of stopping at the first one, so that all are printed."""

    def __init__(self) -> None:
        self._found = dict[str, None]()

    @property
    def count(self) -> int:
        """The number of different problems."""
        return len(self._found)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Context manager: prints an error as a problem instead of raising it; each one only once."""
        try:
            yield
        except (PipelineError, OSError) as error:
            problem = explain_os_error(error) if isinstance(error, OSError) else str(error)
            if problem not in self._found:
                say(f"PROBLEM  {problem}")
            self._found[problem] = None


def run(params: Params, paths: Paths) -> None:
    """Prints the findings about the run that params.yaml describes. Writes nothing.

    Raises:
        PipelineError: there are problems that would stop the run; each one was printed on a line.
    """
    findings = _Findings()
    components: Components | None = None
    exporters: list[Any] = []
    with findings.collected():
        components, exporters = _check_components(params, paths)
    device: torch.device | None = None
    with findings.collected():
        device = choose_device(params.runtime.device)
        threads = params.runtime.threads or cores()
        plural = "s" if threads > 1 else ""
        fact("device", f"{device}, {threads} processor thread{plural}, {format_bytes(memory_of(device))} of memory")
    with findings.collected():
        _check_environment(params, paths)
    _check_git(paths)
    if not str(paths.root).isascii():
        say(
            f"note: the path {paths.root} has non-ASCII characters, with which `dvc exp run --temp` and "
            "`--queue` fail ('ascii' codec): use another folder for them; `dvc repro` works here"
        )
    with findings.collected():
        check_links(params, paths)
        note_untracked(params, paths)
    with tempfile.TemporaryDirectory() as folder, trial_process() as try_steps, findings.collected():
        splits = _data(params, paths, Path(folder))
        for prompt in params.evaluate.generation.prompts:  # a character tokenizer cannot encode every prompt
            with findings.collected():
                splits.tokenizer.encode(prompt)
        if components is not None:
            architecture = components.architecture(params.model, splits.tokenizer)
            if device is not None:
                _check_size(params, architecture, splits, device)
            with findings.collected():
                start = pretrained(params, architecture, splits.tokenizer, paths)
                if start is not None:
                    start.weights(architecture, splits.tokenizer)
                    fact("begins", f"with the weights of {start.name}")
            _check_exports(architecture, exporters, splits, Path(folder), findings)
        if device is not None and components is not None and not findings.count:
            _measure(params, paths, components, splits, device, try_steps)
    if findings.count:
        things = "1 problem" if findings.count == 1 else f"{findings.count} problems"
        raise PipelineError(f"{things} would stop the run: see above")
    say("nothing found that would stop the run")


# ── plugins, environment, git ─────────────────────────────────────────────────────────────────────


def _check_components(params: Params, paths: Paths) -> tuple[Components, list[Any]]:
    """Builds all components that params.yaml selects; returns those of train, and the exporters."""
    registry = Registry.load(paths.plugins)
    components = Components.load(params, paths.plugins, registry)
    built = {plural: registry.chosen(plural, params) for plural in KINDS}
    names = [component.name for every in built.values() for component in every]
    fact("plugins", f"{', '.join(names)}: all found")
    return components, built["exporters"]


def _check_environment(params: Params, paths: Paths) -> None:
    changes = environment_changes(paths.environment, deciding_packages(params, paths, Registry.load(None)))
    if changes:
        listed = "; ".join(changes)
        say(f"note: environment.yaml is not up to date ({listed}), so DVC misses the change: run `pipeline lock`")
    else:
        fact("versions", "environment.yaml is up to date")


def _check_git(paths: Paths) -> None:
    """Prints notes about files that git does not track: clones and queued or `--temp` experiments lack them."""
    if shutil.which("git") is None:
        return
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "plugins", "data", "params.yaml"],
        cwd=paths.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        say("note: this is not a git repository: `dvc exp` and the `diff` commands need one")
        return
    found = listed.stdout.split("\n")[:-1]  # weights are tracked by DVC, not by git
    untracked = sorted((each for each in found if not each.startswith("data/weights/")), reverse=True)
    if untracked:
        more = f" and {len(untracked) - 5} more" if len(untracked) > 5 else ""
        what = "it" if len(untracked) == 1 else "them"
        names = ", ".join(untracked[:5])
        say(f"note: git does not track {names}{more}: `git add` {what}, or queued runs lack {what}")


# ── data ──────────────────────────────────────────────────────────────────────────────────────────


def _data(params: Params, paths: Paths, folder: Path) -> TokenFolder:
    """Tokenizes and splits the corpus (only the beginning of a large one) into `folder`, as the stages do."""
    sample = tokenize_sample(params, paths, folder)
    only = ""
    if sample.cut:
        files = check_beginnings(params, paths)
        only = f"large corpus, only its beginning was read{f' and that of {files:,} files' if files else ''}: "
    sizes = ", ".join(f"{len(sample.splits.ids(name)):,} of {name}" for name in sample.splits.names)
    fact("data", f"{only}{sample.documents:,} documents, {sample.bytes:,} bytes; tokens: {sizes}")
    if names := held_out(sample, params.split.by):
        fact("held out", f"{names} (by {params.split.by})")
    return sample.splits


def _check_exports(
    architecture: Architecture, exporters: list[Any], splits: TokenFolder, folder: Path, findings: _Findings
) -> None:
    """Checks that each format supports the model and the tokenizer, by exporting a model with one layer."""
    with findings.collected(), torch.random.fork_rng(devices=[]):
        shallow = replace(architecture, shape=replace(architecture.shape, n_layers=1))
        model = shallow.make().eval()
        source = export_source(Checkpoint(model, splits.tokenizer, 0, "last"), "")
        for exporter in exporters:
            target = folder / "export" / exporter.name
            target.mkdir(parents=True)
            with findings.collected(), refusals(exporter):
                exporter.export(source, target)


# ── model, memory, time ───────────────────────────────────────────────────────────────────────────


def _check_size(params: Params, architecture: Architecture, splits: TokenFolder, device: torch.device) -> None:
    """Prints the size of the model, and checks that it can fit before it is built.

    Raises:
        PipelineError: the parameters alone need more memory than the device has, or the text is too short.
    """
    tokens, parameters = len(splits.ids("train")), architecture.parameter_count
    share = tokens / parameters
    fact("model", f"{parameters:,} parameters, {share:.2g} training tokens per parameter")
    check_length(tokens, params)
    count = process_count(params.runtime)
    check_fits(architecture, device, params.runtime.strategy, count, rank_micro_batch_size(params.train, count))


def _measure(
    params: Params,
    paths: Paths,
    components: Components,
    splits: TokenFolder,
    device: torch.device,
    try_steps: TrySteps,
) -> None:
    """Says how much memory and time the whole run will need, after a few real steps in a child process."""
    trial = try_steps(params, paths, splits.folder)
    _say_memory(params, trial, device)
    data = TrainingData.read(params, splits, components.batch_sampler)
    run = last_phase(params, components, data, components.architecture(params.model, splits.tokenizer))
    say_time(params, run.length, data, trial.speed)
    say_long_warmup(params.train.schedule.warmup_steps, run.length.total_steps)


def _say_memory(params: Params, trial: Trial, device: torch.device) -> None:
    count, size, needed = process_count(params.runtime), trial.micro_batch_size, trial.memory
    how = "measured" if trial.tried == size else f"extrapolated from what {trial.tried} at once need"
    each = f"each of {count} processes" if count > 1 else "training"
    at_once = "one window" if size == 1 else f"{size} windows"
    fact("memory", f"{each} needs {needed} with {at_once} at once, {how}")
    if count > 1 and params.runtime.strategy == "fsdp":
        say(
            f"note: measured in one process: under fsdp each keeps 1/{count} of weights, gradients and optimizer, "
            "computes activations again, and gathers the embeddings and some blocks for a moment"
        )
    elif needed.total > memory_per_process(device, count):
        there = format_bytes(memory_per_process(device, count))
        lower = f"train.micro_batch_size, now {size}" if size > 1 else "model.context_length or model.emb_dim"
        say(f"note: {device} has {there} for {each}: lower {lower}")
