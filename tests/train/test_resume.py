"""Going on: a run that was stopped, or died, at any moment ends as the uninterrupted one, to the bit."""

from __future__ import annotations

import random
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tell
from small_run import (
    ARCHITECTURE,
    BATCH_SAMPLERS,
    PACKED,
    REGISTRY,
    StopAt,
    assert_same_run,
    changed,
    make_model,
    make_run,
    plugin_architecture,
    start_or_resume,
    weights,
)

from pipeline.core.errors import Interrupted, PipelineError
from pipeline.core.files import sha256 as files_sha256
from pipeline.core.files import verify_manifest
from pipeline.distributed.ranks import Ranks
from pipeline.plugin.components import ModelOutput
from pipeline.train.checkpoint_store import CheckpointSaver, CheckpointStore, saved_runs
from pipeline.train.loop import train
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState

SMALL_EPOCHS = {"train_tokens": 100}
"""11 windows in an epoch and 4 in a step: steps reach over the ends of epochs."""


def stopped_everywhere(folder: Path, every: int, **changes: Any) -> int:
    """Stops a run each `every`-th time that it asks, and lets it go on; returns how many times that was."""
    never = StopAt(time=10**9)
    whole = start_or_resume(folder / "whole", 0, stop=never, **changes)
    assert never.asked > 60
    unwrapped = make_model(architecture=changes.get("architecture", ARCHITECTURE))
    assert list(whole[0].model.state_dict()) == list(unwrapped.state_dict())  # of compiled blocks, too
    steps = set()
    for time in range(0, never.asked, every):
        place = folder / str(time)
        with pytest.raises(Interrupted) as error:
            start_or_resume(place, 0, stop=StopAt(time=time), **changes)
        assert error.value.signal_number == 2
        steps.add(CheckpointStore(place, "run").load()["run"]["step"])
        assert_same_run(start_or_resume(place, 7, **changes), whole)
        shutil.rmtree(place)
    assert every > 2 or steps == set(range(7))
    return len(range(0, never.asked, every))


@pytest.mark.faults
def test_a_run_stopped_at_any_moment_resumes_to_the_same_bits(
    tmp_path: Path, tell: Tell, request: pytest.FixtureRequest
) -> None:
    """Dropout, accumulation, ends of epochs, evaluations and samples inside; with `--long` every moment at which it
    can stop, and otherwise each second, of which there is one in every step."""
    tries = stopped_everywhere(tmp_path, 1 if request.config.getoption("long") else 2, **SMALL_EPOCHS)
    tell("stopped at a moment at which a small run can stop", tries, tries, tries)


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        *((optimizer, "fp32") for optimizer in ("muon", "lion", "adafactor", "sgd", "torch")),
        ("muon", "bf16"),
        ("adamw", "fp16"),
        *(pytest.param(each, "bf16", marks=pytest.mark.long) for each in ("lion", "adafactor", "sgd", "torch")),
    ],
)
def test_with_every_optimizer_and_precision(tmp_path: Path, optimizer: str, precision: str) -> None:
    stopped_everywhere(tmp_path, 13, optimizer=optimizer, precision=precision, **SMALL_EPOCHS)


def test_where_the_numbers_of_a_step_are_read_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(TrainingRun, "reads_late", True)
    stopped_everywhere(tmp_path, 7, **SMALL_EPOCHS)


@pytest.mark.parametrize("order", ["weighted", pytest.param("sequential", marks=pytest.mark.long)])
def test_with_every_batch_sampler(tmp_path: Path, order: str) -> None:
    stopped_everywhere(tmp_path, 7, batch_sampler=BATCH_SAMPLERS[order], **SMALL_EPOCHS)


@pytest.mark.parametrize("order", ["shuffled", pytest.param("weighted", marks=pytest.mark.long)])
def test_with_packs_of_conversations(tmp_path: Path, order: str) -> None:
    stopped_everywhere(tmp_path, 7, batch_sampler=BATCH_SAMPLERS[order], **PACKED, **SMALL_EPOCHS)


@pytest.mark.faults
def test_with_bf16_and_compiled_blocks(tmp_path: Path, tell: Tell, request: pytest.FixtureRequest) -> None:
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler")
    every = 1 if request.config.getoption("long") else 9
    tries = stopped_everywhere(tmp_path, every, precision="bf16", compile=True, **SMALL_EPOCHS)
    tell("… with bf16 and compiled blocks", tries, tries, tries)


def test_with_a_budget_in_flops(tmp_path: Path) -> None:
    """24 windows, as the others."""
    amount = {"total_windows": 24 * ARCHITECTURE.flops_per_token, "budget.unit": "flops"}
    stopped_everywhere(tmp_path, 7, **amount, **SMALL_EPOCHS)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["moe", "gla"])
def test_with_the_model_of_a_plugin(tmp_path: Path, name: str, compiled: bool) -> None:
    """One with a balance loss, and one without blocks or a cache."""
    if compiled and not shutil.which("g++"):
        pytest.skip("there is no C++ compiler")
    changes = {"architecture": plugin_architecture(name), "compile": compiled, **SMALL_EPOCHS}
    stopped_everywhere(tmp_path, 19 if compiled else 7, **changes)


def test_a_run_that_stops_again_and_again_ends_the_same(tmp_path: Path) -> None:
    """Each time a little further on: no state ever leads back."""
    whole = start_or_resume(tmp_path / "whole", 0)
    for tries in range(1, 60):
        try:
            ended = start_or_resume(tmp_path / "again", tries - 1, stop=StopAt(time=7 + 5 * tries))
            break
        except Interrupted:
            continue
    assert tries > 4
    assert_same_run(ended, whole)


def test_a_checkpoint_restores_every_random_generator(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [torch.rand(()).item(), random.random(), np.random.rand(), np.random.randn(), random.gauss(0, 1)]

    run = make_run(tmp_path)
    draws()  # leaves half a pair of normal numbers behind
    run.saver.save_now(TrainState().capture(run))
    expected = draws()
    draws()
    TrainState.restore(run.saver.store.load() or {}, run)
    assert draws() == expected


@dataclass
class LaterState(TrainState):
    """The state of a later version, with fields that nobody told the code about."""

    more: list[int] = field(default_factory=list)
    deeper: dict[str, list[float]] = field(default_factory=dict)


def test_a_field_that_is_added_to_the_state_is_copied_saved_restored_and_compared(tmp_path: Path) -> None:
    run, state = make_run(tmp_path), LaterState(more=[1], deeper={"a": [0.5]})
    updated = state.copy()
    updated.more.append(2)
    updated.deeper["a"].append(1.5)
    assert (state.more, state.deeper) == ([1], {"a": [0.5]})
    run.saver.save_now(updated.capture(run))
    restored = LaterState.restore(run.saver.store.load() or {}, run)
    assert (restored.more, restored.deeper) == ([1, 2], {"a": [0.5, 1.5]})
    assert_same_run((run, restored), (run, updated))
    with pytest.raises(AssertionError, match="more"):
        assert_same_run((run, restored), (run, state))


def test_a_complete_run_is_saved_as_it_ended(tmp_path: Path) -> None:
    whole = start_or_resume(tmp_path, 0)
    assert_same_run(start_or_resume(tmp_path, 3), whole)


# ── a process that dies ───────────────────────────────────────────────────────────────────────────


class Dies:
    """A loss during whose step number `steps` the process dies; a step has two micro-batches."""

    name = "dies"

    def __init__(self, steps: int) -> None:
        self.left = 2 * steps
        self.loss = REGISTRY.build("losses", "cross_entropy", {}, "")

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        if not self.left:
            raise MemoryError
        self.left -= 1
        nats: torch.Tensor = self.loss(output, targets)
        return nats


def died(folder: Path, steps: int) -> CheckpointStore:
    """A run that died in its step number `steps`, having saved after each step."""
    with pytest.raises(MemoryError):
        start_or_resume(folder, 0, loss=Dies(steps), save_seconds=0.0, **SMALL_EPOCHS)
    return CheckpointStore(folder, "run")


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_killed_run_resumes_from_its_last_checkpoint_to_the_same_bits(tmp_path: Path, steps: int) -> None:
    whole = start_or_resume(tmp_path / "whole", 0, **SMALL_EPOCHS)
    saved = died(tmp_path / "died", steps).load()
    assert saved is not None
    assert saved["run"]["step"] == steps
    assert_same_run(start_or_resume(tmp_path / "died", 7, **SMALL_EPOCHS), whole)


def zero_a_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = len(data) // 2 // 4096 * 4096
    assert any(data[start : start + 4096])
    data[start : start + 4096] = bytes(4096)
    path.write_bytes(data)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "truncated": lambda state: (state / "state.pth").write_bytes((state / "state.pth").read_bytes()[:-1]),
    "a zeroed page": lambda state: zero_a_page(state / "state.pth"),
    "a flipped bit": lambda state: flip_a_bit(state / "state.pth"),
    "empty": lambda state: (state / "state.pth").write_bytes(b""),
    "gone": lambda state: (state / "state.pth").unlink(),
    "no manifest": lambda state: (state / "manifest.json").unlink(),
    "a manifest of something else": lambda state: (state / "manifest.json").write_text("[]"),
    "only a temporary folder left": lambda state: state.rename(state.with_name(f".{state.name}.partial-1")),
}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_corrupt_checkpoint_is_skipped_and_the_previous_one_is_used(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tell: Tell
) -> None:
    whole = start_or_resume(tmp_path / "whole", 0, **SMALL_EPOCHS)
    store = died(tmp_path / "died", 4)
    newest = store.checkpoints()[-1]
    DAMAGES[damage](newest)
    capsys.readouterr()
    saved = store.load()
    assert saved is not None
    assert saved["run"]["step"] == 3
    said = capsys.readouterr().out
    assert ("corrupt" in said and str(newest) in said) or damage == "only a temporary folder left"
    assert_same_run(start_or_resume(tmp_path / "died", 7, **SMALL_EPOCHS), whole)
    assert not list(store.folder.glob(".*"))
    tell(f"the newest state: {damage}", 1, 1, 1)


def test_training_starts_over_with_a_message_if_all_checkpoints_are_corrupt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = start_or_resume(tmp_path / "whole", 0, **SMALL_EPOCHS)
    store = died(tmp_path / "died", 4)
    for state in store.checkpoints():
        flip_a_bit(state / "state.pth")
    capsys.readouterr()
    assert_same_run(start_or_resume(tmp_path / "died", 0, **SMALL_EPOCHS), whole)
    assert "every training checkpoint of this run is corrupt: training starts over" in capsys.readouterr().out


# ── saving beside the training ────────────────────────────────────────────────────────────────────


class Slow(CheckpointStore):
    """A store whose disk takes as long as the test says."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "run")
        self.go, self.began, self.written = threading.Event(), threading.Event(), []

    def save(self, captured: dict[str, Any], writers: Ranks) -> None:
        self.began.set()
        assert self.go.wait(30)
        super().save(captured, writers)
        self.written.append(captured["run"]["step"])


def test_training_continues_while_a_checkpoint_is_written_and_the_checkpoint_is_that_of_its_step(
    tmp_path: Path,
) -> None:
    run, state = make_run(tmp_path / "a", save_seconds=1e-9), TrainState()
    store = run.saver.store = Slow(tmp_path / "slow")
    steps = 0

    def watched(output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 9:  # in step 4: the state of step 1 is still being written
            assert store.began.is_set()
            assert store.written == []
            store.go.set()
        nats: torch.Tensor = REGISTRY.build("losses", "cross_entropy", {}, "")(output, targets)
        return nats

    train(changed(run, loss=watched), state)
    assert store.written[0] == 1
    assert store.written[-1] == 6
    kept = CheckpointStore(tmp_path / "slow", "run")
    assert [run.complete for run in saved_runs(tmp_path / "slow")] == [True]
    other = make_run(tmp_path / "b", model=make_model(5))
    TrainState.restore(kept.load() or {}, other)
    assert all(torch.equal(weights(run)[name], tensor) for name, tensor in weights(other).items())


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_error(tmp_path: Path) -> None:
    run = make_run(tmp_path, save_seconds=0.0)

    class Full(CheckpointStore):
        def save(self, captured: dict[str, Any], writers: Ranks) -> None:
            raise PipelineError("the disk is full")

    run.saver.store = Full(tmp_path, "run")
    state = TrainState()
    with pytest.raises(PipelineError, match="the disk is full"):
        train(run, state)
    assert not state.complete


@pytest.mark.parametrize(
    ("device", "waited", "written", "seconds"),
    [
        ("cpu", 0.0, 0.1, 10),
        ("cpu", 3.0, 0.1, 100),
        ("cpu", 0.0, 3.0, 100),
        ("cuda", 3.0, 3.0, 100),
        ("cuda", 0.1, 60.0, 240),
    ],
)
def test_saving_takes_at_most_three_percent_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, waited: float, written: float, seconds: float
) -> None:
    """Beside a GPU, a write in the background counts as far less than waiting for it."""
    now = 1000.0
    monkeypatch.setattr("pipeline.train.checkpoint_store.time.monotonic", lambda: now)
    saver = CheckpointSaver(CheckpointStore(tmp_path, "run"), 10.0, device=device)
    saver._ended, saver.waited, saver.written = now, waited, written
    now = 1000.0 + seconds - 1
    assert not saver.due()
    now = 1000.0 + seconds + 0.01
    assert saver.due()


def test_a_write_that_takes_longer_than_the_interval_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints do not pile up: none is due while one is written, and what is saved nevertheless waits for it."""
    run, state, goes_on = make_run(tmp_path, save_seconds=1e-9), TrainState(), threading.Event()
    monkeypatch.setattr(run.saver.store, "save", lambda captured, writers: goes_on.wait())
    assert run.saver.due()
    run.saver.save_async(state.capture(run), copying=0.0)
    assert not run.saver.due()
    threading.Timer(0.2, goes_on.set).start()
    run.saver.save_async(state.capture(run), copying=1.0)
    assert run.saver.waited > 1.1
    run.saver.wait()


def test_a_file_is_hashed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest has the sha256 of what is on the disk, without another read of the large files."""
    read = list[str]()
    monkeypatch.setattr(
        "pipeline.core.files.sha256", lambda path, told=None: read.append(path.name) or files_sha256(path)
    )
    run, state = make_run(tmp_path), TrainState()
    run.saver.save_now(state.capture(run))
    assert read == ["about.json"]
    monkeypatch.undo()
    assert "state.pth" in verify_manifest(run.saver.store.checkpoints()[-1], "")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, value: float) -> None:
    run, state = make_run(tmp_path), TrainState()
    run.saver.save_now(state.capture(run))
    with torch.no_grad():
        run.model.blocks[0].mlp.up.weight[0, 0] = value
    with pytest.raises(PipelineError, match=r"the weights of blocks\.0\.mlp\.up\.weight are not finite"):
        run.saver.save_now(state.capture(run))
    assert len(run.saver.store.checkpoints()) == 1
    assert not list(run.saver.store.folder.glob(".*"))


def test_weights_that_are_finite_are_kept_even_where_their_sum_is_not(tmp_path: Path) -> None:
    run, state = make_run(tmp_path), TrainState()
    with torch.no_grad():
        run.model.blocks[0].mlp.up.weight[0, :2] = torch.finfo(torch.float32).max
    run.saver.save_now(state.capture(run))
    assert len(run.saver.store.checkpoints()) == 1


def test_saving_a_checkpoint_keeps_torchs_choice_of_checksums(tmp_path: Path) -> None:
    run, state = make_run(tmp_path), TrainState()
    run.saver.save_now(state.capture(run))
    assert torch.serialization.get_crc32_options()
