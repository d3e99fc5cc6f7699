"""A run that is small enough to be tried many times over, and what compares two of them to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from conftest import REPOSITORY

from pipeline.data.batches import TrainingWindows, token_index
from pipeline.data.index import IndexEntry
from pipeline.data.masked import MaskedIds
from pipeline.data.patterns import GPT2_PATTERN
from pipeline.data.tokenizer import END_OF_TEXT, Tokenizer
from pipeline.distributed.interrupt import StopSignal
from pipeline.distributed.ranks import Ranks
from pipeline.model.architecture import Architecture, LanguageModel
from pipeline.params.params import Params
from pipeline.params.reader import load_params
from pipeline.plugin.components import EvalCallback, EvaluationEvent, Loss
from pipeline.plugin.registry import Registry
from pipeline.train.checkpoint_store import CheckpointStore
from pipeline.train.components import Components
from pipeline.train.data import TrainingData
from pipeline.train.loop import train
from pipeline.train.phases import phases
from pipeline.train.run import TrainingRun
from pipeline.train.runtime_config import RuntimeConfig
from pipeline.train.state import TrainState

REGISTRY = Registry.load(
    REPOSITORY / "plugins", ["models", "losses", "optimizers", "schedules", "batch_samplers", "eval_callbacks"]
)
TOKENIZER = Tokenizer("bytes", GPT2_PATTERN, {bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})
CONTEXT = 8
TEXT = np.frombuffer(b"the river runs to a sea of light and stone; we listen. " * 12, dtype=np.uint8)
IDS = {"train": TEXT[:600], "val": TEXT[600:]}


ALONE = Ranks()
RAGGED = (0, 7, 3, 8, 1, 6, 0, 5)


def masked_windows(masked: tuple[int, ...] = RAGGED, shift: bool = False) -> TrainingWindows:
    """The training windows, shuffled; in window k of the text, the first `masked[k]` targets are only read."""
    sampler, ids = REGISTRY.build("batch_samplers", "shuffled", {}, ""), IDS["train"]
    learn = np.ones(len(ids), np.uint8)
    for number, start in enumerate(range(1, len(ids), CONTEXT)):
        learn[start : start + masked[number % len(masked)]] = 0
    return TrainingWindows(MaskedIds(ids, learn), token_index(len(ids), CONTEXT, shift, sampler, ()), sampler, 1)


def conversations(tokens: int) -> tuple[MaskedIds, list[IndexEntry]]:
    """A text of documents of 2 to 14 tokens that end with end-of-text, in two folders, partly only read."""
    ids, learn = TEXT[:tokens].astype(np.uint16), np.arange(tokens) * 7 % 16 < 9
    entries, start = list[IndexEntry](), 0
    while start < tokens:
        size = min(2 + 5 * len(entries) % 13, tokens - start)
        entries.append(IndexEntry(f"{'ab'[len(entries) % 3 == 1]}/{len(entries)}", start, size, size))
        start += size
        ids[start - 1], learn[start - 1] = 256, True
    return MaskedIds(ids, learn.astype(np.uint8)), entries


def documents(tokens: int) -> list[IndexEntry]:
    """A text of two folders, which take turns."""
    size = -(-tokens // 5)
    return [
        IndexEntry(f"{'ab'[number % 2]}/{number}", size * number, min(size, tokens - size * number), size)
        for number in range(5)
    ]


BATCH_SAMPLERS = {
    "shuffled": "{name: shuffled}",
    "sequential": "{name: sequential}",
    "weighted": "{name: weighted, weighted: {shares: {a: 1, b: 3}}}",
}


SETTINGS = {
    "model.name": "gpt2",
    "model.context_length": CONTEXT,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.emb_dim": 16,
    "model.dropout": 0.0,
    "model.gpt2.tied_head": "true",
    "train.budget.unit": "tokens",
    "train.budget.amount": 24 * CONTEXT,
    "train.batch_size": 4,
    "train.micro_batch_size": 2,
    "train.schedule": "{name: cosine, warmup_steps: 2, cosine: {final: 0.1}}",
    "train.evaluation": "{every: 2, windows: 4, final_tokens: 0}",
    "runtime.save_seconds": 1e9,
    "runtime.keep_memory": "false",
}


def small_params(**settings: Any) -> Params:
    """The shipped params with those of a small run, and with other values for keys of `train`."""
    masks = {"model.document_mask": "true"} if settings.get("pack_documents") else {}
    return _read(tuple((SETTINGS | masks | {f"train.{name}": value for name, value in settings.items()}).items()))


@lru_cache
def _read(settings: tuple[tuple[str, Any], ...]) -> Params:
    return load_params(REPOSITORY / "params.yaml", [f"{name}={value}" for name, value in settings])


ARCHITECTURE = Components.load(small_params(), REPOSITORY / "plugins", REGISTRY).architecture(
    small_params().model, TOKENIZER
)
WITHIN_DOCUMENTS = replace(ARCHITECTURE, shape=replace(ARCHITECTURE.shape, document_end=256))
PACKED: dict[str, Any] = {"pack_documents": "true", "architecture": WITHIN_DOCUMENTS}
"""Changes of a run that make it one of packed conversations."""


def plugin_architecture(name: str) -> Architecture:
    """The architecture of a model in tests/plugins/models, of the same size."""
    registry = Registry.of_file(REPOSITORY / "tests" / "plugins" / "models" / f"{name}.py", name)
    return replace(ARCHITECTURE, component=registry.build("models", name, {}, "model"))


def make_model(seed: int = 0, dropout: float = 0.0, architecture: Architecture = ARCHITECTURE) -> LanguageModel:
    torch.manual_seed(seed)
    return replace(architecture, shape=replace(architecture.shape, dropout=dropout)).make()


def small_identity() -> dict[str, Any]:
    """What decides the result, for runs in which it is not the point."""
    return {"params": {"model": {}, "train": {}}, "data": "", "versions": {}}


def make_run(
    folder: Path,
    *,
    model: LanguageModel | None = None,
    make: Callable[[], LanguageModel] | None = None,
    optimizer: str = "adamw",
    options: dict[str, Any] | None = None,
    loss: Loss | None = None,
    callbacks: tuple[EvalCallback, ...] = (),
    total_windows: int = 24,
    every: int = 2,
    save_seconds: float = 1e9,
    train_tokens: int = len(IDS["train"]),
    windows: TrainingWindows | None = None,
    schedule: Callable[[int], float] | None = None,
    ranks: Ranks = ALONE,
    strategy: str = "one",
    precision: str = "fp32",
    compile: bool | str = False,
    recompute: bool | None = None,
    stop: StopSignal | None = None,
    **settings: Any,
) -> TrainingRun:
    """A run of six steps of four windows, computed two at a time; `settings` are keys of `train`."""
    budget = {"budget.amount": total_windows * CONTEXT, "evaluation.every": every}
    params = small_params(**settings, **budget)
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"save_seconds": save_seconds})})
    order = params.train.batch_sampler
    components = Components(
        REGISTRY.build("models", params.model.name, params.model.options, ""),
        loss or REGISTRY.build("losses", "cross_entropy", {}, ""),
        REGISTRY.build("optimizers", optimizer, {optimizer: options or {}}, ""),
        REGISTRY.build("schedules", params.train.schedule.name, params.train.schedule.options, ""),
        REGISTRY.build("batch_samplers", order.name, order.options, ""),
        callbacks,
    )
    if params.train.pack_documents:
        texts = {"train": conversations(train_tokens), "val": conversations(61)}
    else:
        texts = {
            "train": (MaskedIds(IDS["train"][:train_tokens]), documents(train_tokens)),
            "val": (MaskedIds(IDS["val"]), []),
        }
    ids, indexes = ({name: each[part] for name, each in texts.items()} for part in (0, 1))
    data = TrainingData.build(params, TOKENIZER, ids, components.batch_sampler, indexes)
    data = replace(data, windows=windows or data.windows)
    phase = phases(
        params.train, components.schedule, data.windows, ARCHITECTURE.flops_per_token, small_identity(), folder
    )[-1]
    phase = replace(phase, schedule=schedule or phase.schedule, store=CheckpointStore(folder, "run"))
    config = runtime_config(
        processes=ranks.world_size,
        strategy=strategy,
        precision=precision,
        compile=compile if isinstance(compile, str) else "blocks" if compile else "no",
        recompute=strategy == "fsdp" if recompute is None else recompute,
    )
    made = make or (lambda: model or make_model())
    return TrainingRun.build(params, components, data, phase, config, ranks, stop, make=made)


def runtime_config(**fields: Any) -> RuntimeConfig:
    """The runtime config of a single process on a CPU, unless `fields` say otherwise."""
    plain = {"device": "cpu", "processor": "", "threads": torch.get_num_threads(), "processes": 1}
    return RuntimeConfig(**{**plain, "strategy": "one", "precision": "fp32", "compile": "no", **fields})


def changed(
    run: TrainingRun, *, loss: Loss | None = None, windows: TrainingWindows | None = None, **params: Any
) -> TrainingRun:
    """The same run with another loss, other windows, or other values of the section `train`."""
    return replace(
        run,
        components=replace(run.components, loss=loss or run.components.loss),
        data=replace(run.data, windows=windows or run.data.windows),
        params=run.params.model_copy(update=params),
    )


class Disturbs(EvalCallback):
    """Draws random numbers, samples from the model, changes its mode, and remembers what it saw."""

    name: ClassVar[str] = "disturbs"

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        event.generate("the", max_new_tokens=12, temperature=1.0)
        torch.rand(3)
        np.random.rand()
        event.model.eval()
        event.memory.setdefault("seen", []).append(event.step)
        event.show(f"seen {event.memory['seen']}, drew {torch.rand(()).item()}")
        return {"disturbs.step": float(event.step)}


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same_bits(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def start_or_resume(
    folder: Path, seed: int, dropout: float = 0.3, architecture: Architecture = ARCHITECTURE, **changes: Any
) -> tuple[TrainingRun, TrainState]:
    """What the train stage does: begins, or goes on from the newest saved state.

    `seed` decides the weights and random generators before that, which a saved state has to override.
    """
    run = make_run(folder, model=make_model(seed, dropout, architecture), callbacks=(Disturbs(),), **changes)
    np.random.seed(seed)
    saved = run.saver.store.load()
    state = TrainState.restore(saved, run) if saved else TrainState()
    if not state.complete:
        train(run, state)
    return run, state


@dataclass
class StopAt(StopSignal):
    """The signal comes the given time that the run asks for it, counted from 0.

    It asks before each micro-batch, each batch of an evaluation, each callback and each token that one generates.
    """

    time: int = 0
    asked: int = field(default=0, init=False)

    @property
    def number(self) -> int | None:
        self.asked += 1
        return 2 if self.asked > self.time else None


OF_THE_CLOCK = {"timing", "seconds", "processor_seconds", "runtime_config"}
"""Fields of a state that may differ between equal runs; of `final` the peak memory may."""


def same(one: Any, other: Any) -> bool:
    """Whether two values, or nested dicts and lists of them, are the same to the bit, peak memory apart."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(each, other[name]) for name, each in one.items() if name != "peak_memory_bytes"
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_same_run(one: tuple[TrainingRun, TrainState], other: tuple[TrainingRun, TrainState]) -> None:
    """Weights, optimizer and every field of the state that does not hold a time are the same, to the bit."""
    (run, state), (other_run, other_state) = one, other
    assert_same_bits(weights(run), weights(other_run))
    assert_same_bits(run.optimizer.state_dict(), other_run.optimizer.state_dict())
    for each in fields(state):
        if each.name not in OF_THE_CLOCK:
            assert same(getattr(state, each.name), getattr(other_state, each.name)), each.name
