"""preflight: everything that can be known before a run: what would stop it, what it needs, how long it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.console import fact, say
from pipeline.data.batches import evaluation_windows
from pipeline.data.tokenizer import END_OF_TEXT, Tokenizer
from pipeline.data.tokenizer_file import from_file
from pipeline.data.tokens import Ids, TokenFolder
from pipeline.data.vocabulary import published, raw_bytes
from pipeline.environment import environment_yaml
from pipeline.errors import PipelineError, explain_os_error
from pipeline.evaluation.nll import summarize
from pipeline.model.device import check_fits, choose_device, gigabytes, memory_of
from pipeline.plugin.registry import ENTRY_POINTS, Registry
from pipeline.stages.train import Components, load_components, model_config, prepare
from pipeline.training.loop import Run, train_step
from pipeline.training.publish import peak_memory
from pipeline.training.state import StateStore, TrainState

if TYPE_CHECKING:
    from pipeline.params import Params
    from pipeline.paths import Paths

_READ_AT_MOST = 64 << 20
"""Characters of the corpus that are read when it has not been split yet."""
_BYTES_PER_TOKEN = 3.5
"""A guess for a BPE on English text."""
_UNKNOWN_ALPHABET = 256
_SECONDS_FOR_STEPS = 20.0


@dataclass
class _Findings:
    """What would stop the run, collected so that all of it is told at once."""

    problems: list[str] = field(default_factory=list)

    @contextmanager
    def collected(self) -> Iterator[None]:
        try:
            yield
        except PipelineError as error:
            self.add(str(error))
        except OSError as error:
            self.add(explain_os_error(error))

    def add(self, problem: str) -> None:
        self.problems.append(problem)
        say(f"PROBLEM  {problem}")


@dataclass(frozen=True)
class _Data:
    """What is trained on: real token ids, or random ones in about the number that the corpus will give.

    Attributes:
        ids: The tokens of "train" and "val".
        tokenizer: The splits' own, or a stand-in with a vocabulary of the right size.
        source: Where the numbers are from.
    """

    ids: dict[str, Ids]
    tokenizer: Tokenizer
    source: str


def run(params: Params, paths: Paths) -> None:
    """Tells what is known of the run that params.yaml describes, and writes nothing.

    Raises:
        PipelineError: something would stop the run; each such thing has been told on a line of its own.
    """
    findings = _Findings()
    components: Components | None = None
    with findings.collected():
        components = _check_components(params, paths)
    with findings.collected():
        device = choose_device(params.runtime.device)
        fact("device", f"{device}, {_threads(params)} processor threads, {gigabytes(memory_of(device))} of memory")
    _check_environment(paths)
    _check_git(params, paths)
    data: _Data | None = None
    with findings.collected():
        data = _data(params, paths)
    if data is not None:
        _check_prompts(params, data, findings)
        with findings.collected():
            _check_size(params, data)
            if components is not None and not findings.problems:
                _measure(params, components, data)
    if findings.problems:
        count = len(findings.problems)
        raise PipelineError(f"{count} {'thing' if count == 1 else 'things'} would stop the run, told above")
    say("nothing found that would stop the run")


# ── plugins, environment, git ─────────────────────────────────────────────────────────────────────


def _check_components(params: Params, paths: Paths) -> Components:
    """Builds everything that params.yaml chooses, as the stages will."""
    registry = Registry.load(paths.plugins)
    corpus, samplers, formats = params.tokenize.corpus, params.evaluate.samplers, params.export.formats
    registry.build("corpora", corpus.name, corpus.options, "tokenize.corpus")
    components = load_components(params.train, paths)
    registry.build_all("samplers", samplers.use, samplers.options, "evaluate.samplers")
    registry.build_all("exporters", formats.use, formats.options, "export.formats")
    optimizer, loss = params.train.optimizer.name, params.train.loss.name
    fact("plugins", f"{corpus.name}, {loss}, {optimizer}, {', '.join([*samplers.use, *formats.use])}: all there")
    return components


def _check_environment(paths: Paths) -> None:
    path = paths.environment
    written = path.read_text(encoding="utf-8") if path.is_file() else ""
    if written == environment_yaml(ENTRY_POINTS):
        fact("versions", "environment.yaml is up to date")
    else:
        say("note: environment.yaml is not up to date, so DVC would miss an upgrade: run `pipeline lock`")


def _check_git(params: Params, paths: Paths) -> None:
    """What git or DVC does not track is missing in `--temp` and queued experiments, and in the next clone."""
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
    own_texts = params.tokenize.corpus.name == "files" and paths.raw.is_dir()
    if own_texts and not paths.raw.with_suffix(".dvc").is_file():
        say("note: DVC does not track data/raw: `dvc add data/raw`, else a queued run or a clone lacks it")


# ── data ──────────────────────────────────────────────────────────────────────────────────────────


def _data(params: Params, paths: Paths) -> _Data:
    try:
        splits = TokenFolder(paths.splits, "")
    except PipelineError:
        return _guessed(params, paths)
    ids = {name: splits.ids(name) for name in ("train", "val")}
    fact("data", f"{len(ids['train']):,} tokens to train on, {len(ids['val']):,} to validate on (the last split)")
    return _Data(ids, splits.tokenizer, "the last split")


def _guessed(params: Params, paths: Paths) -> _Data:
    """Before the first split: the corpus is read (its beginning, if it is large), and its tokens are guessed."""
    own = params.tokenize
    registry = Registry.load(paths.plugins, ["corpora"])
    corpus = registry.build("corpora", own.corpus.name, own.corpus.options, "tokenize.corpus")
    documents = characters = 0
    try:
        for document in corpus.documents(paths.raw):
            documents += 1
            for block in [document.text] if isinstance(document.text, str) else document.text:
                characters += len(block)
            if characters > _READ_AT_MOST:
                break
    except ValueError as error:
        raise PipelineError(f"the corpus {own.corpus.name}: {error}") from None
    if not characters:
        raise PipelineError(f"the corpus {own.corpus.name} holds no text")
    tokenizer, per_token = _stand_in(params, paths)
    tokens = int(characters / per_token)
    at_least = "at least " if characters > _READ_AT_MOST else ""
    fact(
        "data", f"{at_least}{documents:,} documents, {characters:,} characters: some {tokens:,} tokens, by a guess"
    )
    generator = np.random.default_rng(0)
    val, test = (int(tokens * share) for share in (params.split.val, params.split.test))
    sizes = {"train": tokens - val - test, "val": max(val, 2)}
    ids = {
        name: generator.integers(tokenizer.vocab_size, size=size, dtype=np.uint32) for name, size in sizes.items()
    }
    return _Data(ids, tokenizer, "a guess")


def _stand_in(params: Params, paths: Paths) -> tuple[Tokenizer, float]:
    """A tokenizer with a vocabulary of the right size, and the characters that one of its tokens stands for."""
    own = params.tokenize.tokenizer
    if own.name == "tiktoken":
        return published(own.tiktoken.encoding), _BYTES_PER_TOKEN
    if own.name == "file":
        return from_file(paths.root / own.file.path, own.file.pattern, own.file.end_of_text), _BYTES_PER_TOKEN
    if own.name == "bytes":
        return raw_bytes(), 1.0
    size = own.bpe.vocab_size if own.name == "bpe" else _UNKNOWN_ALPHABET
    ranks = {b"\0" + number.to_bytes(4): number for number in range(size - 1)}
    return Tokenizer("stand-in", "", ranks, {END_OF_TEXT: size - 1}), _BYTES_PER_TOKEN if own.name == "bpe" else 1.0


def _check_prompts(params: Params, data: _Data, findings: _Findings) -> None:
    """A tokenizer of characters cannot read every prompt; without the real one there is nothing to try."""
    if data.tokenizer.name == "stand-in":
        return
    for prompt in params.evaluate.generation.prompts:
        with findings.collected():
            data.tokenizer.encode(prompt)


# ── model, memory, time ───────────────────────────────────────────────────────────────────────────


def _check_size(params: Params, data: _Data) -> None:
    """Says how large the model is; a model that cannot fit is told before any of it is made.

    Raises:
        PipelineError: the parameters alone need more memory than there is, or the text is too short.
    """
    config = model_config(params, data.tokenizer)
    count, tokens = config.parameter_count, len(data.ids["train"])
    fact("model", f"{count:,} parameters, {tokens / count:.2g} tokens to train on for each of them")
    if tokens <= params.model.context_length:
        raise PipelineError(
            f"{tokens:,} tokens to train on are fewer than one window needs (model.context_length "
            f"{params.model.context_length} and one more): lower it or bring more text"
        )
    check_fits(config, choose_device(params.runtime.device))


def _measure(params: Params, components: Components, data: _Data) -> None:
    """Takes a few real steps, and says how much memory and time the whole run will need."""
    with tempfile.TemporaryDirectory() as folder:
        plan = prepare(params, components, data.ids, data.tokenizer, StateStore(Path(folder), "preflight"))
        windows, seconds = _time_steps(plan)
        forward = _time_evaluation(plan, data)
    per_window = seconds / windows
    tokens_per_second = plan.data.context_length / per_window
    fact("memory", f"{gigabytes(peak_memory())} at the most{_note(windows, plan)}")
    own = params.train.evaluation
    available = [len(evaluation_windows(len(ids), plan.data.context_length, plan.data.context_length))
                 for ids in data.ids.values()]  # fmt: skip
    read = sum(min(own.windows, number) for number in available)
    evaluations = plan.total_steps // own.every + 1
    training = per_window * plan.total_windows
    evaluating = forward * (evaluations * read + 2 * available[1])
    fact(
        "time",
        f"some {_duration(training)} to train ({plan.total_steps:,} steps at {tokens_per_second:,.0f} tokens/s, by "
        f"{windows} windows just now), {_duration(evaluating)} to evaluate on the way",
    )


def _time_steps(plan: Run) -> tuple[int, float]:
    """How many windows were timed, and the seconds they took: micro-batches where they fit into the time."""
    state = TrainState()
    one = replace(plan, batch_size=1, micro_batch_size=1)
    seconds = min(_step_seconds(one, state) for _ in range(2))
    size = plan.micro_batch_size
    if size == 1 or seconds * size * 4 > _SECONDS_FOR_STEPS:
        return 1, seconds
    whole = replace(plan, batch_size=size)
    _step_seconds(whole, state)
    return size, min(_step_seconds(whole, state) for _ in range(3))


def _step_seconds(plan: Run, state: TrainState) -> float:
    state.step = 0
    started = time.perf_counter()
    train_step(plan, state)
    return time.perf_counter() - started


def _time_evaluation(plan: Run, data: _Data) -> float:
    """Seconds that evaluating one window takes."""
    length = plan.data.context_length
    windows = evaluation_windows(len(data.ids["val"]), length, length)[: plan.micro_batch_size]
    started = time.perf_counter()
    summarize(plan.model, data.ids["val"], windows, plan.micro_batch_size, data.tokenizer.byte_lengths)
    return (time.perf_counter() - started) / len(windows)


def _note(windows: int, plan: Run) -> str:
    return (
        "" if windows == plan.micro_batch_size else f" with one window at a time; {plan.micro_batch_size} need more"
    )


def _threads(params: Params) -> int:
    return params.runtime.threads or os.cpu_count() or 1


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
