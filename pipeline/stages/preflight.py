"""preflight: everything that can be known before a run: what would stop it, what it needs, how long it takes."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.console import fact, say
from pipeline.data.batches import evaluation_windows
from pipeline.data.tokenizer import END_OF_TEXT, Tokenizer
from pipeline.data.tokenizer_file import from_file
from pipeline.data.tokens import Ids, TokenFolder
from pipeline.data.vocabulary import published, raw_bytes
from pipeline.environment import environment_yaml
from pipeline.errors import PipelineError, explain_os_error, raised_by
from pipeline.evaluation.nll import summarize
from pipeline.model.device import check_fits, choose_device, gigabytes, memory_of
from pipeline.paths import Paths
from pipeline.plugin.registry import ENTRY_POINTS, Registry
from pipeline.stages import split, tokenize
from pipeline.stages.train import Components, load_components, model_config, prepare
from pipeline.training.loop import Run, train_step
from pipeline.training.publish import peak_memory
from pipeline.training.state import StateStore, TrainState

if TYPE_CHECKING:
    from pipeline.params import Params

_READ_AT_MOST = 64 << 20
"""Characters; a corpus of more is not tokenized here, and only its beginning is read."""
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
    """What is trained on: the corpus's own token ids, or random ones in about their number.

    Attributes:
        ids: The tokens of "train" and "val".
        tokenizer: The corpus's own, or a stand-in with a vocabulary of the right size.
    """

    ids: dict[str, Ids]
    tokenizer: Tokenizer


def run(params: Params, paths: Paths) -> None:
    """Tells what is known of the run that params.yaml describes, and writes nothing.

    Raises:
        PipelineError: something would stop the run; each such thing has been told on a line of its own.
    """
    findings = _Findings()
    components: Components | None = None
    with findings.collected():
        components = _check_components(params, paths)
    device: torch.device | None = None
    with findings.collected():
        device = choose_device(params.runtime.device)
        threads = f"{_threads(params)} processor thread{'s' if _threads(params) > 1 else ''}"
        fact("device", f"{device}, {threads}, {gigabytes(memory_of(device))} of memory")
    _check_environment(paths)
    _check_git(paths)
    _check_texts(params, paths)
    with tempfile.TemporaryDirectory() as folder, findings.collected():
        data = _data(params, paths, Path(folder))
        _check_prompts(params, data, findings)
        if device is not None:
            _check_size(params, data, device)
            if components is not None and not findings.problems:
                _measure(params, components, data, Path(folder))
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


def _check_git(paths: Paths) -> None:
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


def _check_texts(params: Params, paths: Paths) -> None:
    """Texts of one's own that are not read, or that DVC does not see."""
    if not paths.raw.is_dir() or not any(paths.raw.iterdir()):
        return
    corpus = params.tokenize.corpus.name
    if corpus == "python_docs":
        say(f"note: data/raw holds texts, but tokenize.corpus.name is {corpus}: `files` reads yours")
    elif corpus == "files" and not paths.raw.with_suffix(".dvc").is_file():
        say("note: DVC does not track data/raw: `dvc add data/raw`, else a queued run or a clone lacks it")


# ── data ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Scratch(Paths):
    """The project's paths, but tokens and splits lie in another folder, which is thrown away."""

    folder: Path

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    @property
    def splits(self) -> Path:
        return self.folder / "splits"

    def shown(self, path: Path) -> str:
        return path.name


def _data(params: Params, paths: Paths, folder: Path) -> _Data:
    """Reads the corpus; tokenizes and splits it in `folder` as the stages will, unless it is large."""
    documents, characters = _read_corpus(params, paths)
    if characters > _READ_AT_MOST:
        return _guessed(params, paths, documents, characters)
    scratch, said = _Scratch(paths.root, folder), io.StringIO()
    try:
        with redirect_stdout(said):
            tokenize.run(params, scratch)
            split.run(params, scratch)
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith(("note:", "removed")):
                say(line)
    splits = TokenFolder(scratch.splits, "")
    ids = {name: splits.ids(name) for name in ("train", "val")}
    sizes = ", ".join(f"{len(splits.ids(name)):,} of {name}" for name in splits.names)
    fact("data", f"{documents:,} documents, {characters:,} characters; tokens: {sizes}")
    return _Data(ids, splits.tokenizer)


def _read_corpus(params: Params, paths: Paths) -> tuple[int, int]:
    """Counts documents and characters, of the beginning if the corpus is large."""
    own = params.tokenize.corpus
    corpus = Registry.load(paths.plugins, ["corpora"]).build("corpora", own.name, own.options, "tokenize.corpus")
    documents = characters = 0
    try:
        for document in corpus.documents(paths.raw):
            documents += 1
            for block in [document.text] if isinstance(document.text, str) else document.text:
                characters += len(block)
            if characters > _READ_AT_MOST:
                break
    except (OSError, PipelineError):
        raise
    except ValueError as error:
        raise PipelineError(f"the corpus {own.name}: {error}") from None
    except Exception as error:
        raise raised_by(f"the corpus {own.name!r}", error) from error
    return documents, characters


def _guessed(params: Params, paths: Paths, documents: int, characters: int) -> _Data:
    """For a corpus of which only the beginning was read: random ids, in about the number of the tokens it has."""
    tokenizer, per_token = _stand_in(params, paths)
    tokens = int(characters / per_token)
    fact("data", f"a large corpus: its first {documents:,} documents alone are some {tokens:,} tokens, by a guess")
    generator = np.random.default_rng(0)
    val, test = (int(tokens * share) for share in (params.split.val, params.split.test))
    sizes = {"train": tokens - val - test, "val": max(val, 2)}
    ids = {
        name: generator.integers(tokenizer.vocab_size, size=size, dtype=np.uint32) for name, size in sizes.items()
    }
    return _Data(ids, tokenizer)


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


def _check_size(params: Params, data: _Data, device: torch.device) -> None:
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
    check_fits(config, device)


def _measure(params: Params, components: Components, data: _Data, folder: Path) -> None:
    """Takes a few real steps, and says how much memory and time the whole run will need."""
    plan = prepare(params, components, data.ids, data.tokenizer, StateStore(folder, "preflight"))
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
