"""The training loop: gradients, clipping, what stops a run, and that going on changes no bit."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY

from pipeline.data.batches import TrainingWindows, evaluation_windows
from pipeline.data.tokenizer import END_OF_TEXT, Tokenizer
from pipeline.data.vocabulary import GPT2_PATTERN
from pipeline.errors import Interrupted, PipelineError
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.plugin.components import IGNORED, EvalCallback, EvaluationEvent, Loss, ModelOutput, StopTraining
from pipeline.plugin.registry import Registry
from pipeline.training.evaluation import Evaluator
from pipeline.training.interrupt import StopSignal
from pipeline.training.loop import Run, train, train_step
from pipeline.training.schedule import Schedule
from pipeline.training.state import StateStore, TrainState

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


RAGGED = (0, 7, 3, 8, 1, 6, 0, 5)


def make_model(seed: int = 0, dropout: float = 0.0) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(TOKENIZER.vocab_size, CONTEXT, 2, 2, 16, dropout, True, True, "gpt2", 64))


def make_run(
    folder: Path,
    *,
    model: GPT | None = None,
    optimizer: str = "adamw",
    every: int = 2,
    callbacks: tuple[EvalCallback, ...] = (),
    **changes: Any,
) -> Run:
    """A run of six steps of four windows, computed two at a time."""
    model = model or make_model()
    built = REGISTRY.build("optimizers", optimizer, {}, "").build(model.named_parameters())
    data = TrainingWindows(IDS["train"], CONTEXT, 1, True)
    evaluator = Evaluator(
        model=model,
        optimizer=built,
        data=data,
        tokenizer=TOKENIZER,
        ids=IDS,
        windows={name: evaluation_windows(len(ids), CONTEXT, CONTEXT)[:4] for name, ids in IDS.items()},
        batch_size=4,
        windows_at=lambda step: 4 * step,
        total_steps=6,
        callbacks=callbacks,
    )
    run = Run(
        model=model,
        optimizer=built,
        loss=REGISTRY.build("losses", "cross_entropy", {}, ""),
        data=data,
        schedule=Schedule("cosine", 6, 2, 0.1, 0.2),
        total_steps=6,
        total_windows=24,
        batch_size=4,
        micro_batch_size=2,
        precision="fp32",
        grad_clip=0.0,
        evaluate_every=every,
        evaluate=evaluator,
        store=StateStore(folder, "run"),
        save_seconds=1e9,
        stop=StopSignal(),
    )
    return replace(run, **changes)


def gradient(run: Run) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same_bits(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


# ── accumulation ──────────────────────────────────────────────────────────────────────────────────


def ragged_gradient(folder: Path, micro_batch_size: int, dtype: torch.dtype, **changes: Any) -> torch.Tensor:
    run = make_run(
        folder,
        model=make_model().to(dtype),
        data=Masked(IDS["train"], CONTEXT, 1, False, RAGGED),
        batch_size=8,
        total_windows=8,
        micro_batch_size=micro_batch_size,
        **changes,
    )
    state = TrainState()
    _, tokens = train_step(run, state)
    _, targets = run.data.batch(run.offsets(0))
    assert tokens == state.objective_tokens == (targets != IGNORED).sum()
    assert 0 < tokens < targets.size
    return gradient(run)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
@pytest.mark.parametrize("grad_clip", [0.0, 1e-3])
def test_accumulated_gradients_of_ragged_batches_are_those_of_the_whole_batch(
    tmp_path: Path, micro_batch_size: int, grad_clip: float
) -> None:
    whole = ragged_gradient(tmp_path, 8, torch.float64, grad_clip=grad_clip)
    accumulated = ragged_gradient(tmp_path, micro_batch_size, torch.float64, grad_clip=grad_clip)
    torch.testing.assert_close(accumulated, whole, rtol=1e-6, atol=1e-12)


def test_accumulated_gradients_in_float32_are_near_those_of_the_whole_batch(tmp_path: Path) -> None:
    whole, accumulated = (ragged_gradient(tmp_path, size, torch.float32) for size in (8, 1))
    assert (accumulated - whole).norm() <= 1e-5 * whole.norm()


def plain_gradient(model: GPT, data: TrainingWindows, offsets: list[int]) -> torch.Tensor:
    """The gradient of the mean loss over all of a batch's targets, the plain way."""
    x, y = (torch.from_numpy(array) for array in data.batch(offsets))
    model.zero_grad()
    F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_the_gradient_is_that_of_the_mean_over_the_batchs_targets(tmp_path: Path) -> None:
    data = Masked(IDS["train"], CONTEXT, 1, False, RAGGED)
    expected = plain_gradient(make_model().double(), data, data.offsets(0, 8))
    torch.testing.assert_close(ragged_gradient(tmp_path, 2, torch.float64), expected, rtol=1e-6, atol=1e-12)


def test_the_last_incomplete_batch_has_its_own_divisor(tmp_path: Path) -> None:
    run = make_run(tmp_path, model=make_model().double(), total_windows=23, micro_batch_size=2)
    state = TrainState(step=5)
    assert len(run.offsets(4)) == 4
    assert len(run.offsets(5)) == 3
    _, tokens = train_step(run, state)
    assert tokens == 3 * CONTEXT
    expected = plain_gradient(make_model().double(), run.data, run.offsets(5))
    torch.testing.assert_close(gradient(run), expected, rtol=1e-6, atol=1e-12)


def test_an_epochs_budget_reads_every_window_the_same_number_of_times(tmp_path: Path) -> None:
    data = TrainingWindows(IDS["train"], CONTEXT, 1, False)
    run = make_run(tmp_path, data=data, total_windows=3 * data.per_epoch)
    assert run.total_windows % run.batch_size
    read = [offset for step in range(-(-run.total_windows // run.batch_size)) for offset in run.offsets(step)]
    assert sorted(read) == sorted(3 * list(range(0, CONTEXT * data.per_epoch, CONTEXT)))


# ── clipping, masks, what is not finite ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_clipping_scales_the_whole_accumulated_gradient_to_its_largest_norm(
    tmp_path: Path, micro_batch_size: int
) -> None:
    free, clipped = (
        make_run(tmp_path, model=make_model().double(), grad_clip=clip, micro_batch_size=micro_batch_size)
        for clip in (0.0, 0.125)
    )
    states = [TrainState(), TrainState()]
    for run, state in zip((free, clipped), states, strict=True):
        train_step(run, state)
    norm = gradient(free).norm().item()
    assert norm > 0.5
    assert [state.grad_norm for state in states] == pytest.approx([norm, norm], rel=1e-12)
    torch.testing.assert_close(gradient(clipped), gradient(free) * (0.125 / norm), rtol=1e-5, atol=1e-12)


def test_a_gradient_below_the_largest_norm_is_left_as_it_is(tmp_path: Path) -> None:
    free, clipped = (make_run(tmp_path, grad_clip=clip) for clip in (0.0, 1e3))
    for run in (free, clipped):
        train_step(run, TrainState())
    assert_same_bits(gradient(clipped), gradient(free))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_batch_whose_targets_are_all_masked_is_skipped(tmp_path: Path, optimizer: str) -> None:
    run = make_run(tmp_path, optimizer=optimizer)
    before, state = weights(run), TrainState()
    masked = replace(run, data=Masked(IDS["train"], CONTEXT, 1, True, (CONTEXT,)))
    assert train_step(masked, state) == (0.0, 0)
    assert_same_bits(weights(run), before)
    assert (state.step, state.grad_norm, state.objective_nats, state.objective_tokens) == (1, 0.0, 0.0, 0)
    train_step(run, state)
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


class Broken(Loss):
    """A loss that is not finite, or whose gradient is not."""

    name: ClassVar[str] = "broken"
    value: str = "nan"

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        if self.value == "gradient":
            return (output.logits.sum(dim=-1) * 0).sqrt()
        return output.logits.sum(dim=-1) * float(self.value)


@pytest.mark.parametrize(
    ("value", "what"), [("nan", "the loss is nan"), ("gradient", "the gradient's norm is nan")]
)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_rate_and_place(
    tmp_path: Path, value: str, what: str
) -> None:
    run = make_run(tmp_path)
    state = TrainState()
    for _ in range(3):
        train_step(run, state)
    before = weights(run)
    with pytest.raises(PipelineError) as error:
        train_step(replace(run, loss=Broken(value=value)), state)
    message = str(error.value)
    rates = ", ".join(f"{group['lr']:.3g}" for group in run.optimizer.param_groups)
    assert f"step 3: {what} (learning rate {rates}; " in message
    assert ", ".join(map(str, run.offsets(3))) in message
    assert state.step == 3
    assert_same_bits(weights(run), before)


# ── the chapter ───────────────────────────────────────────────────────────────────────────────────


def test_each_steps_loss_is_that_of_the_chapters_training_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, schedule=lambda step: 1.0)
    plain = REGISTRY.build("optimizers", "adamw", {"adamw": {"plain": True, "beta2": 0.999}}, "")
    run = replace(run, optimizer=plain.build(run.model.named_parameters()), micro_batch_size=4)
    state, losses = TrainState(), []
    for _ in range(6):
        nats, tokens = train_step(run, state)
        losses.append(nats / tokens)

    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0004, weight_decay=0.1)
    expected = []
    for step in range(6):
        input_batch, target_batch = (torch.from_numpy(array) for array in run.data.batch(run.offsets(step)))
        optimizer.zero_grad()
        logits = model(input_batch).logits
        loss = F.cross_entropy(logits.flatten(0, 1), target_batch.flatten())
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5, rel=0)
    assert expected[-1] < expected[0]


# ── evaluations do not disturb ────────────────────────────────────────────────────────────────────


class Disturbs(EvalCallback):
    """Draws random numbers, samples from the model and changes its mode."""

    name: ClassVar[str] = "disturbs"

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        event.generate("the", max_new_tokens=12, temperature=1.0)
        torch.rand(3)
        np.random.rand()
        event.model.eval()
        return {"disturbs.step": float(event.step)}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_evaluating_every_step_or_never_gives_the_same_weights_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    callbacks = (Disturbs(), REGISTRY.build("eval_callbacks", "sample_text", {}, ""))
    found = []
    for every in (1, 1000):
        torch.manual_seed(0)
        run = make_run(
            tmp_path, model=make_model(dropout=0.5), optimizer=optimizer, every=every, callbacks=callbacks
        )
        state = TrainState()
        train(run, state)
        found.append(weights(run))
        assert [row["step"] for row in state.history] == (list(range(7)) if every == 1 else [0, 6])
        assert run.model.training
    assert_same_bits(*found)


def test_the_history_tells_of_the_loss_that_was_optimised_and_of_the_data_seen(tmp_path: Path) -> None:
    run, nats = make_run(tmp_path, every=3), []
    original = run.loss

    def watched(output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        nats.append(original(output, targets))
        return nats[-1]

    state = TrainState()
    train(replace(run, loss=watched), state)
    assert [row["tokens"] for row in state.history] == [0, 3 * 4 * CONTEXT, 6 * 4 * CONTEXT]
    means = [torch.cat(nats[first : first + 6]).double().mean().item() for first in (0, 6)]
    assert [row["train.objective"] for row in state.history[1:]] == pytest.approx(means, rel=1e-6)
    lowest = min(state.history, key=lambda row: row["val.loss"])
    assert (state.best_step, state.best_loss) == (lowest["step"], lowest["val.loss"])


class Stops(EvalCallback):
    """Stops the run at a step."""

    name: ClassVar[str] = "stops"

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        event.memory["seen"] = event.memory.get("seen", 0) + 1
        if event.step == 4:
            raise StopTraining("enough")
        return {}


def test_a_callback_ends_the_run_after_its_evaluation(tmp_path: Path) -> None:
    run, state = make_run(tmp_path, callbacks=(Stops(),)), TrainState()
    train(run, state)
    assert (state.step, state.stopped, state.complete) == (4, "enough", True)
    assert [row["step"] for row in state.history] == [0, 2, 4]
    assert state.memory == {"stops": {"seen": 3}}


# ── stopping and going on ─────────────────────────────────────────────────────────────────────────


@dataclass
class StopAt(StopSignal):
    """The signal comes before the given micro-batch of the run, counted from 0."""

    micro_batch: int = 0
    asked: int = field(default=0, init=False)

    @property
    def number(self) -> int | None:  # type: ignore[override]
        self.asked += 1
        return 2 if self.asked > self.micro_batch else None


def uninterrupted(folder: Path, optimizer: str) -> tuple[Run, TrainState]:
    return went_on(folder, optimizer, seed=0)


def went_on(folder: Path, optimizer: str, seed: int, **changes: Any) -> tuple[Run, TrainState]:
    """What the train stage does: begins, or goes on from the newest saved state."""
    run = make_run(
        folder, model=make_model(seed, dropout=0.3), optimizer=optimizer, callbacks=(Disturbs(),), **changes
    )
    np.random.seed(seed)
    saved = run.store.load()
    state = TrainState.restore(saved, run.model, run.optimizer) if saved else TrainState()
    train(run, state)
    return run, state


def assert_same_run(one: tuple[Run, TrainState], other: tuple[Run, TrainState]) -> None:
    (run, state), (other_run, other_state) = one, other
    assert_same_bits(weights(run), weights(other_run))
    assert_same_bits(run.optimizer.state_dict(), other_run.optimizer.state_dict())
    assert state.history == other_state.history
    assert_same_bits(state.best_weights, other_state.best_weights)
    assert (state.samples, state.memory, state.complete) == (
        other_state.samples,
        other_state.memory,
        other_state.complete,
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("micro_batch", [0, 1, 4, 7, 11])
def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_bits(
    tmp_path: Path, optimizer: str, micro_batch: int
) -> None:
    whole = uninterrupted(tmp_path / "whole", optimizer)
    with pytest.raises(Interrupted, match=f"step {micro_batch // 2} of 6") as error:
        went_on(tmp_path / "stopped", optimizer, seed=0, stop=StopAt(micro_batch))
    assert error.value.signal_number == 2
    assert_same_run(went_on(tmp_path / "stopped", optimizer, seed=7), whole)


class Dies:
    """A loss during whose step number `steps` the process dies; a step has two micro-batches."""

    def __init__(self, steps: int) -> None:
        self.left = 2 * steps
        self.loss = REGISTRY.build("losses", "cross_entropy", {}, "")

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        if not self.left:
            raise MemoryError
        self.left -= 1
        nats: torch.Tensor = self.loss(output, targets)
        return nats


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_run_that_died_goes_on_from_its_last_saved_state_to_the_same_bits(tmp_path: Path, steps: int) -> None:
    whole = uninterrupted(tmp_path / "whole", "adamw")
    with pytest.raises(MemoryError):
        went_on(tmp_path / "died", "adamw", seed=0, loss=Dies(steps), save_seconds=0.0)
    saved = StateStore(tmp_path / "died", "run").load()
    assert saved is not None
    assert saved["run"]["step"] == steps
    assert_same_run(went_on(tmp_path / "died", "adamw", seed=7), whole)


def test_a_saved_state_brings_every_random_generator_back(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [torch.rand(()).item(), random.random(), np.random.rand(), np.random.randn(), random.gauss(0, 1)]

    run = make_run(tmp_path)
    draws()  # leaves half a pair of normal numbers behind
    run.store.save(TrainState().capture(run.model, run.optimizer))
    expected = draws()
    draws()
    TrainState.restore(run.store.load() or {}, run.model, run.optimizer)
    assert draws() == expected


def test_a_damaged_state_is_passed_over_for_the_one_before_it(tmp_path: Path) -> None:
    whole = uninterrupted(tmp_path / "whole", "adamw")
    with pytest.raises(MemoryError):
        went_on(tmp_path / "died", "adamw", seed=0, loss=Dies(4), save_seconds=0.0)
    newest = sorted((tmp_path / "died" / "run").glob("step-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    saved = StateStore(tmp_path / "died", "run").load()
    assert saved is not None
    assert saved["run"]["step"] == 3
    assert_same_run(went_on(tmp_path / "died", "adamw", seed=7), whole)


def test_a_complete_run_is_saved_as_it_ended(tmp_path: Path) -> None:
    run, state = uninterrupted(tmp_path, "adamw")
    saved = run.store.load()
    assert saved is not None
    restored = TrainState.restore(saved, make_model(3), make_run(tmp_path).optimizer)
    assert restored.complete
    assert restored.history == state.history
