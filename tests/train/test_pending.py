"""When the numbers of a step are read: at once, or late, as on a GPU, here tried on the CPU; and float16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import (
    REGISTRY,
    StopAt,
    assert_same_bits,
    assert_same_run,
    make_model,
    make_run,
    plugin_architecture,
    weights,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core.errors import Interrupted, PipelineError
from pipeline.plugin.components import EvalCallback, ModelOutput, StepEvent
from pipeline.train.loop import take_step, train, train_step
from pipeline.train.pending import Pending
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the numbers late, as on a GPU."""
    monkeypatch.setattr(TrainingRun, "reads_late", True)


def trained(folder: Path, **changes: Any) -> tuple[TrainingRun, TrainState]:
    run, state = make_run(folder, **changes), TrainState()
    train(run, state)
    return run, state


class BrokenFrom:
    """A loss that is not finite from the given micro-batch on, counted from 0; a step has two."""

    name = "broken"

    def __init__(self, place: int) -> None:
        self.place, self.asked = place, 0
        self.loss = REGISTRY.build("losses", "cross_entropy", {}, "")

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        nats: torch.Tensor = self.loss(output, targets) * (1.0 if self.asked <= self.place else float("nan"))
        return nats


# ── late ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("settings", [{"every": 1}, {"every": 4, "log_every": 1}, {"save_seconds": 0.0}])
def test_reading_late_changes_no_bit(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = trained(tmp_path / "at once", **settings)
    monkeypatch.setattr(TrainingRun, "reads_late", True)
    assert_same_run(trained(tmp_path / "late", **settings), at_once)


@pytest.mark.parametrize("settings", [{"every": 1}, {"every": 4}, {"every": 100}, {"save_seconds": 0.0}])
def test_a_loss_that_is_not_finite_is_found_before_anything_uses_the_weights(
    settings: dict[str, Any], tmp_path: Path, late: None
) -> None:
    run, state = make_run(tmp_path, loss=BrokenFrom(6), **settings), TrainState()
    with pytest.raises(PipelineError, match="training stopped at step 3: the loss is nan"):
        train(run, state)
    saved = run.saver.store.load()
    assert saved is None or saved["run"]["step"] <= 3
    assert all(row["step"] <= 3 for row in (*state.history, *state.steps))


def test_a_run_that_is_stopped_does_not_save_a_bad_step(tmp_path: Path, late: None) -> None:
    asked_before = 4 + 2 * 3  # by the evaluation of step 0, and by three steps of two micro-batches
    for time, expected in ((asked_before, Interrupted), (asked_before + 2, PipelineError)):
        run = make_run(tmp_path / str(time), loss=BrokenFrom(6), every=100, stop=StopAt(time=time))
        with pytest.raises(expected):
            train(run, TrainState())
        saved = run.saver.store.load()
        assert (saved["run"]["step"] if saved else None) == (3 if expected is Interrupted else None)


class Reads(TorchDispatchMode):
    """Counts the numbers that the host reads from a device: it would wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


# torch's own Adafactor reads its factors in each step.
@pytest.mark.parametrize(
    ("name", "optimizer"), [("moe", "adamw"), *(("", each) for each in ("adamw", "muon", "lion", "sgd"))]
)
def test_a_step_waits_for_no_number_of_the_device(name: str, optimizer: str, tmp_path: Path, late: None) -> None:
    model = make_model(architecture=plugin_architecture(name)) if name else make_model(dropout=0.1)
    run, state = make_run(tmp_path, model=model, optimizer=optimizer), TrainState()
    pending = Pending(run, state)
    for _ in range(2):
        with Reads() as reads:
            take_step(run, state, pending)
        assert reads.count == 0
    assert state.objective_tokens > 0  # of the first step


class Watches(EvalCallback):
    """Looks at each step."""

    name = "watches"

    def after_step(self, event: StepEvent) -> None:
        assert event.metrics["grad_norm"] > 0


def test_a_callback_that_sees_each_step_has_its_numbers_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingRun, "device", torch.device("cuda"))
    assert make_run(tmp_path).reads_late
    assert not make_run(tmp_path, callbacks=(Watches(),)).reads_late
    assert not make_run(tmp_path, skip_bad_steps=1).reads_late
    monkeypatch.setattr(TrainingRun, "device", torch.device("cpu"))
    assert not make_run(tmp_path).reads_late


def test_the_ids_of_a_step_are_sent_to_the_device_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    original = TrainingRun.to_device

    def to_device(run: TrainingRun, ids: torch.Tensor) -> torch.Tensor:
        sent.append(ids)
        return original(run, ids)

    monkeypatch.setattr(TrainingRun, "to_device", to_device)
    run = make_run(tmp_path)
    for _ in range(3):
        train_step(run, TrainState())
    assert len(sent) == 3
    for ids in sent:
        assert ids.is_contiguous()
        assert ids.dtype == torch.int32
        assert ids.shape == (2, 4, 8)


# ── float16 ───────────────────────────────────────────────────────────────────────────────────────


def test_a_run_in_float16_learns_as_one_in_float32(tmp_path: Path) -> None:
    whole, half = (trained(tmp_path / each, precision=each)[1] for each in ("fp32", "fp16"))
    assert half.objective_tokens == 0
    rows = zip(whole.history, half.history, strict=True)
    assert all(
        other["train.objective"] == pytest.approx(row["train.objective"], rel=2e-3) for row, other in [*rows][1:]
    )
    assert half.history[-1]["grad_norm"] == pytest.approx(whole.history[-1]["grad_norm"], rel=2e-2)


def test_clipping_in_float16_measures_the_norm_without_the_scale(tmp_path: Path) -> None:
    run, state = make_run(tmp_path, precision="fp16", grad_clip=0.1), TrainState()
    train_step(run, state)
    norm = torch.cat([each.grad.flatten() for each in run.model.parameters()]).norm().item()
    assert state.grad_norm > 0.5
    assert norm == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("read_late", [False, True])
def test_a_step_that_overflows_is_left_out_and_lowers_the_scale(
    read_late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingRun, "reads_late", read_late)
    run, state = make_run(tmp_path, precision="fp16"), TrainState()
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**40})
    before = weights(run)
    train_step(run, state)
    assert_same_bits(weights(run), before)
    assert run.scaler.get_scale() == 2.0**39
    assert (state.step, state.skipped, state.objective_tokens, state.grad_norm) == (1, [], 0, 0.0)


def test_a_gradient_that_overflows_at_any_scale_stops_the_run(tmp_path: Path) -> None:
    run, state = make_run(tmp_path, precision="fp16", loss=BrokenGradient()), TrainState()
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0})
    train_step(run, state)
    train_step(run, state)
    with pytest.raises(
        PipelineError, match=r"the gradient's norm is nan, although the loss is only scaled by 0\.5"
    ):
        train_step(run, state)


class BrokenGradient:
    """A finite loss whose gradient is not."""

    name = "broken"

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        return (output.logits.sum(dim=-1) * 0).sqrt()
