"""fit: chooses the settings for a text, a machine and a number of minutes, and says why."""

from __future__ import annotations

import json
import math
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands import fit_rules
from pipeline.commands.estimate import duration
from pipeline.commands.sample import Sample, beginning_of_corpus, held_out, tokenize_sample
from pipeline.commands.timing import Speed
from pipeline.commands.trial import try_steps
from pipeline.commands.versions import note_untracked, record_for_dvc
from pipeline.core.console import say
from pipeline.core.errors import DataError, ParamsError
from pipeline.core.files import format_bytes
from pipeline.data.batches import evaluation_windows
from pipeline.data.encode import text_blocks
from pipeline.model.architecture import Architecture
from pipeline.model.device import choose_device
from pipeline.params.presets import write_values
from pipeline.params.reader import load_params
from pipeline.plugin.splits import split_of
from pipeline.tokenize.documents import without_notes
from pipeline.tokenize.stage import build_corpus
from pipeline.tokenize.tokenizers import build_tokenizer
from pipeline.train.components import Components

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import Params

_SMALLEST = 2_000
"""Bytes of text; less cannot be cut into windows and held-out text."""
_GUESS = {"cpu": 1.5e11, "mps": 1e12, "cuda": 2e13}
"""Operations a second that the first trial is planned with."""
_NEAR = math.log(1.3)
"""Two speeds are near enough for the same choice if their logarithms differ by less."""
_TRIALS = 3
_EVALUATIONS = 9
_FEWEST, _LARGEST = 20, 1 / 3
"""Whole documents are held out if there are so many, and none has a larger part of the text."""
_SEEDS = 100
"""How many seeds of the split are tried."""
_WIDTH = 80


@dataclass
class _Text:
    """The text, before it is tokenized.

    Attributes:
        size: Bytes of all of it.
        documents: How many were read.
        share: The part of it that was read.
        sizes: The bytes of each document that was read, by its name.
        prompts: How some documents begin.
        ids: Whether it comes as token ids, so that the tokenizer is given.
    """

    size: int = 0
    documents: int = 0
    share: float = 1.0
    sizes: dict[str, int] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    ids: bool = False

    @property
    def about(self) -> str:
        documents = "1 document" if self.documents == 1 else f"{self.documents:,} documents"
        return f"{format_bytes(self.size)} in {'over ' if self.share < 1 else ''}{documents}"


@dataclass(frozen=True)
class _Fit:
    """What was chosen, and what it rests on."""

    text: _Text
    tokens: float
    vocabulary: int
    setting: fit_rules.Setting
    values: dict[str, Any]
    architecture: Architecture
    params: Params
    speed: Speed
    seconds: float
    split_is_set: bool
    held_out: str


def run(file: Path, overrides: Sequence[str], paths: Paths, minutes: float, dry_run: bool) -> None:
    """Chooses settings for `minutes` of training, says why, and writes them into the params file.

    What `overrides` set is kept and written, too.

    Raises:
        ParamsError, DataError, PipelineError: the params, the text or a trial step cannot be used, or the time is
            too short.
    """
    fit = _choose(file, overrides, paths, minutes * 60)
    _explain(fit, minutes)
    changes = write_values(fit.values, file, write=not dry_run)
    for change in changes:
        say(change)
    if dry_run:
        say(f"nothing was written (--dry-run): {len(changes)} values of {file} would change")
        return
    for line in record_for_dvc(file, paths):
        say(line)
    note_untracked(fit.params, paths)
    say(f"{file} {'now' if changes else 'already'} has these values: next, `pipeline check` or `dvc repro`")


def _choose(file: Path, overrides: Sequence[str], paths: Paths, seconds: float) -> _Fit:
    """The rules at the speed that trial steps measure: each trial is of the choice at the speed of the one
    before."""
    fixed = _fixed(file, overrides)
    values: dict[str, Any] = {}
    if load_params(file, overrides).tokenize.corpus.name == "python_docs" and _has_texts(paths):
        values["tokenize.corpus.name"] = "files"
    params = _params(file, values, overrides)
    text = _read_text(params, paths)
    values |= _split(params, text) | _prompts(params, text)
    flops = seconds * _GUESS[choose_device(params.runtime.device).type]
    sample, tokenized, said = None, None, set[str]()
    with tempfile.TemporaryDirectory() as folder:
        for trial in range(_TRIALS):
            values |= {} if text.ids else _tokenizer(fit_rules.vocabulary(text.size, flops))
            params = _params(file, values, overrides)
            if sample is None or tokenized != params.tokenize:
                sample = tokenize_sample(params, paths, Path(folder) / str(trial), said)
                tokenized = params.tokenize
            tokens = len(sample.splits.ids("train")) / text.share
            vocabulary = sample.splits.tokenizer.vocab_size
            setting = fit_rules.setting(tokens, vocabulary, flops)
            values |= setting.values()
            first = ["runtime.compile=false"] if trial == 0 and params.runtime.compile == "auto" else []
            params = _params(file, values, [*overrides, *first])
            speed = try_steps(params, paths, sample.splits.folder).speed
            step = speed.window * params.train.batch_size + speed.update
            left = seconds - _beside_steps(params, sample, speed)
            if left < seconds / 3:
                raise ParamsError(
                    f"--minutes {seconds / 60:g} is too short: start, compiling and evaluations take "
                    f"{duration(seconds - left)} here: give at least {math.ceil((seconds - left) / 20)}"
                )
            architecture = Components.load(params, paths.plugins).architecture(
                params.model, sample.splits.tokenizer
            )
            context = params.model.context_length
            measured = left * params.train.batch_size * context * architecture.flops_per_token / step
            held = held_out(sample, params.split.by)
            near = abs(math.log(measured / flops)) < _NEAR
            flops = measured
            if near:
                break
    chosen = fit_rules.with_steps(setting, int(left / step), tokens)
    values |= chosen.values() | fixed
    params = _params(file, values, overrides)
    return _Fit(
        text, tokens, vocabulary, chosen, values, architecture, params, speed, seconds - left + chosen.steps * step,
        "split.by" in fixed, held,
    )  # fmt: skip


def _fixed(file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What `--set` gives, checked, by key; `runtime` is not written."""
    dumped = load_params(file, overrides).model_dump(mode="json")
    found: dict[str, Any] = {}
    for override in overrides:
        key = override.partition("=")[0].strip()
        value: Any = dumped
        for part in key.split("."):
            value = value[part]
        if not key.startswith("runtime"):
            found |= _flat(value, key)
    return found


def _flat(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {name: each for part, inner in value.items() for name, each in _flat(inner, f"{key}.{part}").items()}


def _params(file: Path, values: Mapping[str, Any], overrides: Sequence[str]) -> Params:
    chosen = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_params(file, [*chosen, *overrides])


def _has_texts(paths: Paths) -> bool:
    return paths.raw.is_dir() and any(path.is_file() for path in paths.raw.rglob("*"))


def _read_text(params: Params, paths: Paths) -> _Text:
    """Reads the text, or the beginning of a long one; the size of the rest is that of the files."""
    beginning, text = beginning_of_corpus(params, paths), _Text()
    tokenizer = cache(partial(build_tokenizer, params.tokenize.tokenizer, beginning, paths))
    for document in without_notes(beginning):  # they are printed when it is tokenized
        text.ids = text.ids or document.ids is not None
        start, size = "", 0
        for block in text_blocks(document, tokenizer):
            size += len(block.encode(errors="replace"))
            start = start or block[:200]
        if not size:
            continue  # tokenize leaves it out, too
        text.documents += 1
        text.size += size
        text.sizes[document.name] = size
        words = " ".join(start.split()[:3])[:24].strip()
        if words and words not in text.prompts and len(text.prompts) < 3:
            text.prompts.append(words)
    if text.size < _SMALLEST:
        raise DataError(f"the text has {text.size:,} bytes, and fit needs at least {_SMALLEST:,}: add more text")
    if beginning.cut:
        sources = build_corpus(params, paths).sources(paths.raw)
        if sources is None:
            sizes = (path.stat().st_size for path in paths.raw.rglob("*") if path.is_file())
        else:
            sizes = (source.bytes for source in sources)
        files = sum(sizes)
        text.share = text.size / max(text.size, files)
        text.size = max(text.size, files)
    return text


def _split(params: Params, text: _Text) -> dict[str, Any]:
    """Documents are held out if there are enough of them, otherwise the end of the text."""
    share = fit_rules.split_share(text.size / 3.5)
    if params.split.by == "predefined":
        return {}
    by_document: dict[str, Any] = {"split.by": "document", "split.val": share, "split.test": share}
    if text.share < 1:
        return by_document
    several = text.documents >= _FEWEST and max(text.sizes.values()) < _LARGEST * text.size
    seed = _balanced_seed(params.split.seed, share, text.sizes) if several else None
    if seed is None:
        return by_document | {"split.by": "position", "split.unit": "tokens"}
    return by_document | {"split.seed": seed}


def _balanced_seed(first: int, share: float, sizes: Mapping[str, int]) -> int | None:
    """The first seed, from `first`, with which val and test each get 3 documents and about `share` of the bytes."""
    wanted = share * sum(sizes.values())
    for seed in range(first, first + _SEEDS):
        held_out: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        for name, size in sizes.items():
            held_out[split_of(name, seed, share, share)].append(size)
        sides = (held_out["val"], held_out["test"])
        if all(len(each) >= 3 and wanted / 2 < sum(each) < 2 * wanted for each in sides):
            return seed
    return None


def _prompts(params: Params, text: _Text) -> dict[str, Any]:
    """Samples begin as the texts do, so that any tokenizer can read them; what weights are used."""
    values: dict[str, Any] = {"train.init_from": "", "evaluate.weights": "best", "export.weights": "best"}
    if params.tokenize.corpus.name != "python_docs" and text.prompts:
        values["evaluate.generation.prompts"] = text.prompts
        values["train.eval_callbacks.sample_text.prompt"] = text.prompts[0]
    return values


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    if not vocabulary:
        return {"tokenize.tokenizer.name": "characters"}
    return {"tokenize.tokenizer.name": "bpe", "tokenize.tokenizer.bpe.vocab_size": vocabulary}


def _beside_steps(params: Params, sample: Sample, speed: Speed) -> float:
    """Seconds of a run that are not steps: start, compiling, evaluations."""
    context = params.model.context_length
    val = len(evaluation_windows(len(sample.splits.ids("val")), context, context))
    windows = min(params.train.evaluation.windows, val)
    return speed.start + speed.compile + speed.evaluation * (_EVALUATIONS * 2 * windows + 2 * val)


# ── reasons ───────────────────────────────────────────────────────────────────────────────────────


def _explain(fit: _Fit, minutes: float) -> None:
    """One choice with its reason after the other, no line longer than 80 columns."""
    chosen, params = fit.setting, fit.params
    parameters, each = fit.architecture.parameter_count, fit.tokens / fit.architecture.parameter_count
    rate = (
        params.train.batch_size
        * params.model.context_length
        / (fit.speed.window * params.train.batch_size + fit.speed.update)
    )
    busy = f", if no other program runs (now they use {fit.speed.others:.1f} cores)" if fit.speed.busy else ""
    _line("text", f"{fit.text.about}: {fit.tokens:,.0f} tokens to train on")
    _line("machine", f"{choose_device(params.runtime.device)}: {rate:,.0f} tokens a second with this model{busy}")
    if fit.text.ids:
        _line("tokens", f"a vocabulary of {fit.vocabulary:,}: that of the token ids in data/raw")
    elif params.tokenize.tokenizer.name == "characters":
        why = "a small text does not have enough examples of longer tokens"
        _line("tokens", f"characters, a vocabulary of {fit.vocabulary:,}: {why}")
    else:
        _line(
            "tokens",
            f"a vocabulary of {fit.vocabulary:,}: a larger one shortens the text, but each token must occur often "
            "enough, and the output head must not cost more than the rest of the model",
        )
    names = f" ({fit.held_out})" if fit.held_out else ""
    _line("split", _about_split(params, fit.text, fit.split_is_set) + names)
    why = (
        "a larger model would overfit a text of this size"
        if chosen.limited
        else f"the size that learns the most in {minutes:g} min on this machine"
    )
    model = params.model
    layers = "1 layer" if model.n_layers == 1 else f"{model.n_layers} layers"
    _line("model", f"{layers} of width {model.emb_dim}, {parameters:,} parameters: {why}")
    _line(
        "batch",
        f"{params.train.batch_size} windows of {model.context_length} tokens: a short run learns more from many"
        " small steps",
    )
    read = (
        f"the text is read {chosen.epochs:.1f} times"
        if chosen.epochs >= 1
        else f"{chosen.epochs:.0%} of the text is read"
    )
    if chosen.limited:
        _line("length", f"{chosen.steps:,} steps: {read}, and more epochs would gain little")
    else:
        _line("length", f"{chosen.steps:,} steps: {read}")
    overfits = "expect overfitting" if each < 1 and chosen.epochs > 1.5 else "overfitting is not expected"
    why = f"{each:.2g} tokens of text per parameter, read {chosen.epochs:.2g} times: {overfits}"
    _line("dropout", f"{model.dropout:g}; {why}; the best weights are kept")
    _line(
        "rates",
        f"{chosen.lr:g} for muon, {chosen.adamw_lr:g} for its AdamW part, momentum {chosen.momentum:g}: the fewer "
        "steps, the higher the rate",
    )
    _line("time", f"about {duration(fit.seconds)} to train")


def _about_split(params: Params, text: _Text, is_set: bool) -> str:
    split = params.split
    if split.by == "predefined":
        return "as your folders or files are named"
    if split.by == "position":
        why = (
            f"{text.documents:,} documents are too few, or too unequal in size, to hold some of them out"
            if text.documents > 1
            else "it is one document"
        )
        why = "set by you" if is_set else why
        return f"the last {split.val + split.test:.0%} of the text is held out for val and test: {why}"
    return f"{split.val:.1%} of the documents are held out for val, {split.test:.1%} for test"


def _line(label: str, text: str) -> None:
    indent = f"{label:<9}"
    for line in textwrap.wrap(text, _WIDTH - len(indent), break_on_hyphens=False):
        say(f"{indent}{line}", wrap=False)
        indent = " " * len(indent)
