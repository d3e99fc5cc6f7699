"""A run that is small enough to be tried many times over, and what compares two of them to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from conftest import REPOSITORY

from pipeline.data.batches import TrainingWindows, evaluation_windows
from pipeline.data.patterns import GPT2_PATTERN
from pipeline.data.tokenizer import END_OF_TEXT, Tokenizer
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.plugin.components import IGNORED, EvalCallback, EvaluationEvent
from pipeline.plugin.registry import Registry
from pipeline.train.evaluation import Evaluator
from pipeline.train.interrupt import StopSignal
from pipeline.train.length import Length
from pipeline.train.loop import Run, train
from pipeline.train.parallel import parallelize
from pipeline.train.ranks import Ranks
from pipeline.train.schedule import Schedule
from pipeline.train.state import TrainState
from pipeline.train.store import Saver, StateStore

REGISTRY = Registry.load(REPOSITORY / "plugins", ["losses", "optimizers", "eval_callbacks"])
TOKENIZER = Tokenizer("bytes", GPT2_PATTERN, {bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})
CONTEXT = 8
TEXT = np.frombuffer(b"the river runs to a sea of light and stone; we listen. " * 12, dtype=np.uint8)
IDS = {"train": TEXT[:600], "val": TEXT[600:]}


@dataclass(frozen=True)
class Masked(TrainingWindows):
    """Training windows of which some targets are masked: in window k (by its offset) the first `masked[k]`."""

    masked: tuple[int, ...] = ()

    def batch(self, offsets: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        x, y = (array.copy() for array in super().batch(offsets))
        for row, offset in enumerate(offsets):
            y[row, : self.masked[offset // self.context_length % len(self.masked)]] = IGNORED
        return x, y


ALONE = Ranks()
RAGGED = (0, 7, 3, 8, 1, 6, 0, 5)


def make_model(seed: int = 0, dropout: float = 0.0) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(TOKENIZER.vocab_size, CONTEXT, 2, 2, 16, dropout, True, True, "gpt2", 64))


def make_run(
    folder: Path,
    *,
    model: GPT | None = None,
    make: Callable[[], GPT] | None = None,
    optimizer: str = "adamw",
    options: dict[str, Any] | None = None,
    every: int = 2,
    callbacks: tuple[EvalCallback, ...] = (),
    batch_size: int = 4,
    total_windows: int = 24,
    train_tokens: int = len(IDS["train"]),
    ranks: Ranks = ALONE,
    strategy: str = "one",
    compile: bool = False,
    save_seconds: float = 1e9,
    stop: StopSignal | None = None,
    **changes: Any,
) -> Run:
    """A run of six steps of four windows, computed two at a time."""
    parallel = parallelize(make or (lambda: model or make_model()), torch.device("cpu"), ranks, strategy, compile)
    model = parallel.model
    built = REGISTRY.build("optimizers", optimizer, {optimizer: options or {}}, "").build(model.named_parameters())
    data = TrainingWindows(IDS["train"][:train_tokens], CONTEXT, 1, True)
    length, stop = Length(batch_size, (total_windows,)), stop or StopSignal()
    evaluator = Evaluator(
        parallel=parallel,
        optimizer=built,
        data=data,
        tokenizer=TOKENIZER,
        ids=IDS,
        windows={name: evaluation_windows(len(ids), CONTEXT, CONTEXT)[:4] for name, ids in IDS.items()},
        batch_size=4,
        length=length,
        callbacks=callbacks,
        stop=stop,
    )
    run = Run(
        parallel=parallel,
        optimizer=built,
        loss=REGISTRY.build("losses", "cross_entropy", {}, ""),
        data=data,
        seed=1,
        schedule=Schedule("cosine", length.total_steps, 2, 0.1, 0.2),
        length=length,
        micro_batch_size=2,
        precision="fp32",
        grad_clip=0.0,
        skip_bad_steps=0,
        evaluate_every=every,
        evaluate=evaluator,
        saver=Saver(StateStore(folder, "run"), save_seconds, length.total_steps, parallel.writers),
        stop=stop,
    )
    return replace(run, **changes)


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


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same_bits(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def went_on(folder: Path, seed: int, dropout: float = 0.3, **changes: Any) -> tuple[Run, TrainState]:
    """What the train stage does: begins, or goes on from the newest saved state.

    `seed` decides the weights and random generators before that, which a saved state has to override.
    """
    run = make_run(folder, model=make_model(seed, dropout), callbacks=(Disturbs(),), **changes)
    np.random.seed(seed)
    saved = run.saver.store.load()
    state = TrainState.restore(saved, run.parallel, run.optimizer) if saved else TrainState()
    if not state.complete:
        train(run, state)
    return run, state


def assert_same_run(one: tuple[Run, TrainState], other: tuple[Run, TrainState]) -> None:
    """Weights, optimizer, history, best weights, samples and memory are the same, to the bit."""
    (run, state), (other_run, other_state) = one, other
    assert_same_bits(weights(run), weights(other_run))
    assert_same_bits(run.optimizer.state_dict(), other_run.optimizer.state_dict())
    assert state.history == other_state.history
    assert_same_bits(state.best_weights, other_state.best_weights)
    for name in ("step", "best_step", "samples", "memory", "skipped", "complete"):
        assert getattr(state, name) == getattr(other_state, name), name
