"""check: everything that can be known before a run: what would stop it, what it needs, how long it takes."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.console import fact, say
from pipeline.core.environment import environment_changes
from pipeline.core.errors import PipelineError, explain_os_error
from pipeline.core.files import readable
from pipeline.core.paths import Paths
from pipeline.core.processor import cores
from pipeline.data.batches import EvaluationWindow, evaluation_windows
from pipeline.data.tokens import TokenFolder
from pipeline.export.stage import export_source, refusals
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.device import choose_device, memory_of, peak_memory
from pipeline.model.gpt import GPT
from pipeline.plugin.components import Document
from pipeline.plugin.registry import Registry
from pipeline.split import stage as split
from pipeline.tokenize import stage as tokenize
from pipeline.train.components import Components
from pipeline.train.conditions import choose, process_count
from pipeline.train.data import TrainingData, check_length
from pipeline.train.distributed.ranks import Ranks
from pipeline.train.evaluation import summarize
from pipeline.train.loop import train_step
from pipeline.train.memory import estimate
from pipeline.train.memory_check import bytes_per_parameter, check_fits
from pipeline.train.phases import phases
from pipeline.train.run import TrainingRun, model_config
from pipeline.train.stage import pretrained
from pipeline.train.state import TrainState

if TYPE_CHECKING:
    from pipeline.params.params import Params

_READ_AT_MOST = 32 << 20
"""Characters; of a larger corpus only the beginning is read."""
_SECONDS_FOR_STEPS = 20.0


class _Findings:
    """Counts what would stop the run and goes on, so that all problems are told at once."""

    count = 0

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Prints an error that is raised inside instead of passing it on."""
        try:
            yield
        except (PipelineError, OSError) as error:
            say(f"PROBLEM  {explain_os_error(error) if isinstance(error, OSError) else error}")
            self.count += 1


def run(params: Params, paths: Paths) -> None:
    """Prints what is known about the run that params.yaml describes, and writes nothing.

    Raises:
        PipelineError: something would stop the run; each problem was printed on its own line.
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
        fact("device", f"{device}, {threads} processor thread{plural}, {readable(memory_of(device))} of memory")
    _check_environment(paths)
    _check_git(paths)
    _check_texts(params, paths)
    with tempfile.TemporaryDirectory() as folder, findings.collected():
        splits = _data(params, paths, Path(folder))
        for prompt in params.evaluate.generation.prompts:  # a tokenizer of characters cannot read every prompt
            with findings.collected():
                splits.tokenizer.encode(prompt)
        if device is not None:
            _check_size(params, splits, device)
        with findings.collected():
            start = pretrained(params, splits.tokenizer, paths)
            if start is not None:
                start.weights(model_config(params, splits.tokenizer))
                fact("begins", f"with the weights of {start.name}")
        _check_exports(params, exporters, splits, Path(folder), findings)
        if device is not None and components is not None and not findings.count:
            _measure(params, components, splits, Path(folder))
    if findings.count:
        things = "1 thing" if findings.count == 1 else f"{findings.count} things"
        raise PipelineError(f"{things} would stop the run, told above")
    say("nothing found that would stop the run")


# ── plugins, environment, git ─────────────────────────────────────────────────────────────────────


def _check_components(params: Params, paths: Paths) -> tuple[Components, list[Any]]:
    """Builds everything that params.yaml chooses, as the stages will: what train needs, and the exporters."""
    registry = Registry.load(paths.plugins)
    corpus, samplers, formats = params.tokenize.corpus, params.evaluate.samplers, params.export.formats
    registry.build("corpora", corpus.name, corpus.options, "tokenize.corpus")
    components = Components.load(params.train, paths.plugins)
    registry.build_all("samplers", samplers.use, samplers.options, "evaluate.samplers")
    exporters = registry.build_all("exporters", formats.use, formats.options, "export.formats")
    optimizer, loss = params.train.optimizer.name, params.train.loss.name
    fact("plugins", f"{corpus.name}, {loss}, {optimizer}, {', '.join([*samplers.use, *formats.use])}: all there")
    return components, exporters


def _check_environment(paths: Paths) -> None:
    changes = environment_changes(paths.environment, Registry.load(None).packages())
    if changes:
        told = "; ".join(changes)
        say(f"note: environment.yaml is not up to date ({told}), so DVC would miss an upgrade: run `pipeline lock`")
    else:
        fact("versions", "environment.yaml is up to date")


def _check_git(paths: Paths) -> None:
    """Notes files that git does not track: `--temp` and queued experiments, and clones, lack them."""
    if shutil.which("git") is None:
        return
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "plugins", "data", "params.yaml"],
        cwd=paths.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        say("note: this is no git repository: `dvc exp` and the `diff` commands need one")
        return
    untracked = listed.stdout.split("\n")[:-1]
    if untracked:
        more = f" and {len(untracked) - 5} more" if len(untracked) > 5 else ""
        say(f"note: git does not track {', '.join(untracked[:5])}{more}: `git add` it, else a queued run lacks it")


def _check_texts(params: Params, paths: Paths) -> None:
    """Notes texts in data/raw that the chosen corpus does not read, or that DVC does not track."""
    if not paths.raw.is_dir() or not any(paths.raw.iterdir()):
        return
    corpus = params.tokenize.corpus.name
    if corpus == "python_docs":
        say(f"note: data/raw holds texts, but tokenize.corpus.name is {corpus}: `files` reads yours")
    elif corpus == "files" and not paths.raw.with_suffix(".dvc").is_file():
        say("note: DVC does not track data/raw: `dvc add data/raw`, else a queued run or a clone lacks it")


# ── data ──────────────────────────────────────────────────────────────────────────────────────────


class _Scratch(Paths):
    """The project's paths, with tokens and splits in a temporary folder."""

    def __init__(self, root: Path, folder: Path) -> None:
        super().__init__(root)
        self.tokens, self.splits = folder / "tokens", folder / "splits"

    def shown(self, path: Path) -> str:
        return path.name


@dataclass
class _Beginning:
    """The corpus up to _READ_AT_MOST characters; `cut` tells whether that is less than all of it."""

    documents: tokenize.Documents
    cut: bool = False
    left: int = 0

    def __call__(self) -> Iterator[Document]:
        self.left = _READ_AT_MOST
        for document in self.documents():
            if self.left <= 0:
                self.cut = True
                return
            blocks = [document.text] if isinstance(document.text, str) else document.text
            yield replace(document, text=self._taken(blocks))

    def _taken(self, blocks: Iterable[str]) -> Iterator[str]:
        for block in blocks:
            if self.left <= 0:
                self.cut = True
                return
            self.left -= len(block)
            yield block


def _data(params: Params, paths: Paths, folder: Path) -> TokenFolder:
    """Tokenizes and splits the corpus in `folder` as the stages will; of a large one, only the beginning."""
    scratch, said = _Scratch(paths.root, folder), io.StringIO()
    corpus = tokenize.build_corpus(params, paths)
    beginning = _Beginning(lambda: tokenize.read_corpus(corpus, paths))
    try:
        with redirect_stdout(said):
            tokenize.write_tokens(params, scratch, corpus, beginning)
            if beginning.cut:  # whether documents leave a side empty cannot be told from a part: cut by position
                by_position = params.split.model_copy(update={"by": "position", "unit": "tokens"})
                params = params.model_copy(update={"split": by_position})
            split.run(params, scratch)
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith(("note:", "removed")):
                say(line)
    read = TokenFolder(scratch.tokens, "").meta["files"]["tokens"]
    splits = TokenFolder(scratch.splits, "")
    only = "a large corpus; its beginning alone has " if beginning.cut else ""
    sizes = ", ".join(f"{len(splits.ids(name)):,} of {name}" for name in splits.names)
    fact("data", f"{only}{read['documents']:,} documents, {read['bytes']:,} bytes; tokens: {sizes}")
    return splits


def _check_exports(
    params: Params, exporters: list[Any], splits: TokenFolder, folder: Path, findings: _Findings
) -> None:
    """Whether each format has a form for such a model and tokenizer: it writes one that is a single layer deep."""
    with findings.collected(), torch.random.fork_rng(devices=[]):
        model = GPT(replace(model_config(params, splits.tokenizer), n_layers=1)).eval()
        source = export_source(Checkpoint(model, splits.tokenizer, 0, "last"), "")
        for exporter in exporters:
            target = folder / "export" / exporter.name
            target.mkdir(parents=True)
            with findings.collected(), refusals(exporter):
                exporter.export(source, target)


# ── model, memory, time ───────────────────────────────────────────────────────────────────────────


def _check_size(params: Params, splits: TokenFolder, device: torch.device) -> None:
    """Says how large the model is; a model that cannot fit is told before any of it is made.

    Raises:
        PipelineError: the parameters alone need more memory than there is, or the text is too short.
    """
    config, train = model_config(params, splits.tokenizer), splits.ids("train")
    share = len(train) / config.parameter_count
    fact("model", f"{config.parameter_count:,} parameters, {share:.2g} tokens to train on for each of them")
    check_length(train, params.model.context_length)
    check_fits(config, device, params.runtime.strategy, process_count(params.runtime))


def _measure(params: Params, components: Components, splits: TokenFolder, folder: Path) -> None:
    """Takes a few real steps, and says how much memory and time the whole run will need."""
    data = TrainingData.read(params, splits)
    phase = phases(params.train, data.windows, {"params": {"train": {}}}, folder)[-1]
    conditions = replace(choose(params, Ranks(), {}, 0.0), compile=False)  # a few steps: not worth compiling
    plan = TrainingRun.build(params, components, data, phase, conditions)
    timed, seconds = _time_steps(plan)
    per_window = seconds / timed
    length = params.model.context_length
    windows = evaluation_windows(len(data.ids["val"]), length, length)
    forward = _time_evaluation(plan, windows[: params.train.micro_batch_size])
    read = sum(len(each) for each in data.evaluated.values())
    evaluations = plan.total_steps // params.train.evaluation.every + 1
    evaluating = forward * (evaluations * read + 2 * len(windows))
    fact("memory", f"{readable(peak_memory(plan.device))} at the most{_note(timed, plan)}")
    fact("estimate", _needed(params, plan))
    fact(
        "time",
        f"some {_duration(per_window * plan.length.total_windows)} to train ({plan.total_steps:,} steps at "
        f"{length / per_window:,.0f} tokens/s, as just measured), {_duration(evaluating)} to evaluate on the way",
    )
    load = os.getloadavg()[0]
    if plan.device.type == "cpu" and load > cores() + 0.5:  # this process is part of it
        say(f"note: other processes are at work (load {load:.1f} on {cores()} cores): alone it is quicker")


def _time_steps(plan: TrainingRun) -> tuple[int, float]:
    """How many windows were timed, and the seconds they took: micro-batches where they fit into the time."""
    state, one = TrainState(), _with_batch(plan, 1)
    seconds = min(_step_seconds(one, state) for _ in range(2))
    size = plan.params.micro_batch_size
    if size == 1 or seconds * size * 4 > _SECONDS_FOR_STEPS:
        return 1, seconds
    whole = _with_batch(plan, size)
    _step_seconds(whole, state)
    return size, min(_step_seconds(whole, state) for _ in range(3))


def _with_batch(plan: TrainingRun, size: int) -> TrainingRun:
    """The same run with steps of one micro-batch of this size."""
    length, params = replace(plan.length, batch_size=size), {"micro_batch_size": size}
    return replace(plan, phase=replace(plan.phase, length=length), params=plan.params.model_copy(update=params))


def _step_seconds(plan: TrainingRun, state: TrainState) -> float:
    state.step = 0
    started = time.perf_counter()
    train_step(plan, state)
    return time.perf_counter() - started


def _time_evaluation(plan: TrainingRun, windows: list[EvaluationWindow]) -> float:
    """Seconds that evaluating one window takes."""
    started = time.perf_counter()
    summarize(plan, "val", windows)
    return (time.perf_counter() - started) / len(windows)


def _needed(params: Params, plan: TrainingRun) -> str:
    """What a step needs by the estimate, and so on each of several processes."""
    count = process_count(params.runtime)
    size = min(params.train.micro_batch_size, -(-params.train.batch_size // count))
    needed = estimate(
        plan.model.config, size, plan.conditions.precision, bytes_per_parameter(plan.optimizer), plan.device.type,
        params.runtime.strategy, count,
    )  # fmt: skip
    return f"{f'on each of {count} processes ' if count > 1 else ''}a step needs about {needed}"


def _note(windows: int, plan: TrainingRun) -> str:
    size = plan.params.micro_batch_size
    return "" if windows == size else f" with one window at a time; {size} need more"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
