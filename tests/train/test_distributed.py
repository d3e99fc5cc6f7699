"""Several processes that train one model: the batches, gradients and losses of one, and one decision for all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import REPOSITORY, TINY, start_fork_server
from small_run import (
    ARCHITECTURE,
    BATCH_SAMPLERS,
    PACKED,
    assert_same_bits,
    make_model,
    make_run,
    masked_windows,
    plugin_architecture,
    runtime_config,
    weights,
)
from torch.multiprocessing import start_processes

from pipeline.core.errors import CheckpointError, Interrupted, ParamsError, PipelineError, PluginError
from pipeline.core.files import verify_manifest, write_manifest
from pipeline.distributed.interrupt import StopSignal
from pipeline.distributed.placement import cores_per_process
from pipeline.distributed.process_group import (
    DistributedRanks,
    process_group,
    ranks_from_environment,
    slurm_address,
)
from pipeline.distributed.ranks import Ranks
from pipeline.model.architecture import Architecture, LanguageModel
from pipeline.plugin.components import EvalCallback, EvaluationEvent, StopTraining
from pipeline.train.checkpoint_store import to_meta
from pipeline.train.distributed.shards import write_shards
from pipeline.train.evaluation import evaluate, summarize
from pipeline.train.loop import train, train_step
from pipeline.train.parallel import Parallel
from pipeline.train.run import TrainingRun, parallelize
from pipeline.train.state import TrainState

BATCH = 8
STEPS, FEW_STEPS = 50, 12
"""Of a loss curve: with `--long`, and in `make test`, which reaches over the end of an epoch too."""


def run_ranks(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Runs `work(ranks, *arguments)` in `count` processes of one process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_fork_server()
    start_processes(_rank, (count, port, work, arguments), nprocs=count, start_method="forkserver")


def _rank(rank: int, count: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    ranks = DistributedRanks(rank, count, rank)
    with process_group(ranks, on_gpus=False):
        work(ranks, *arguments)


# ── the same losses on 1, 2 and 4 ranks ───────────────────────────────────────────────────────────


def curve(
    folder: Path,
    ranks: Ranks,
    *,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    architecture: Architecture = ARCHITECTURE,
    **changes: Any,
) -> TrainingRun:
    """A run of 12 AdamW steps of 8 windows."""
    settings = {"batch_size": BATCH, "total_windows": FEW_STEPS * BATCH, "grad_clip": 1.0, "every": 10} | changes

    def make() -> LanguageModel:
        return make_model(dropout=dropout, architecture=architecture).to(dtype)

    return make_run(folder, make=make, ranks=ranks, **settings)


RAGGED_DATA = masked_windows()
CASES: dict[str, dict[str, Any]] = {
    "float64": {"options": {"lr": 1e-3}},
    "float64, one window at a time": {"options": {"lr": 1e-3}, "micro_batch_size": 1},
    "float64, dropout": {"options": {"lr": 1e-3}, "dropout": 0.3, "micro_batch_size": 2},
    "float64, uneven targets": {"options": {"lr": 1e-3}, "windows": RAGGED_DATA, "micro_batch_size": 1},
    "float64, a batch that does not divide": {"batch_size": 7, "micro_batch_size": 2},
    "float64, packs": {"options": {"lr": 1e-3}, "micro_batch_size": 2, **PACKED},
    "float64, weighted": {"options": {"lr": 1e-3}, "batch_sampler": BATCH_SAMPLERS["weighted"]},
    "float32, 1e-4": {"options": {"lr": 1e-4}, "dtype": torch.float32},
    "float32, 4e-4": {"options": {"lr": 4e-4}, "dtype": torch.float32},
    "float32, 1e-3": {"options": {"lr": 1e-3}, "dtype": torch.float32},
    "float32, 1e-3, uneven targets": {"options": {"lr": 1e-3}, "dtype": torch.float32, "windows": RAGGED_DATA},
}
SHARDED: dict[str, dict[str, Any]] = {
    "float64": CASES["float64"],
    "float64, uneven targets": CASES["float64, uneven targets"],
    "float64, packs": CASES["float64, packs"],
    "float64, a batch that does not divide": CASES["float64, a batch that does not divide"],
    "float32, 1e-3": CASES["float32, 1e-3"],
    "lion": {"optimizer": "lion"},
    "sgd": {"optimizer": "sgd"},
}


ALL = [*(("ddp", name) for name in CASES), *(("fsdp", name) for name in SHARDED)]
ON_FOUR = [
    ("ddp", "float64, dropout"),
    ("fsdp", "float64, uneven targets"),
]
ON_TWO = [
    *ON_FOUR,
    ("ddp", "float32, 1e-3, uneven targets"),
    ("ddp", "float64, a batch that does not divide"),
    ("ddp", "float64, weighted"),
    ("ddp", "float64, packs"),
    ("fsdp", "float64, packs"),
    ("fsdp", "float64, a batch that does not divide"),
]
"""The cases of `make test`; `--long` runs all of them."""


def curves(ranks: Ranks, folder: Path, cases: list[tuple[str, str]], steps: int) -> None:
    """Trains every case; the first rank writes down each step's loss, each evaluation, and the weights.

    The last step has about half of the windows of the others."""
    found: dict[str, Any] = {}
    for strategy, name in cases:
        case = (SHARDED if strategy == "fsdp" else CASES)[name]
        size = case.get("batch_size", BATCH)
        case = case | {"strategy": strategy, "total_windows": steps * size - size // 2}
        run, state = curve(folder / str(ranks.world_size), ranks, **case), TrainState()
        losses = []
        while state.step < run.total_steps:
            nats, tokens = train_step(run, state)
            losses.append(nats / max(tokens, 1))
        evaluate(run, state)
        found[f"{strategy} {name}"] = (losses, state.history[-1], run.parallel.full(run.model.state_dict()))
    if ranks.is_rank0:
        torch.save(found, folder / f"curves-{ranks.world_size}.pth")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[int, Any]:
    """The curves by number of ranks, and by strategy and case."""
    folder = tmp_path_factory.mktemp("curves")
    long = request.config.getoption("long")
    on_two, on_four, steps = (ALL, ALL, STEPS) if long else (ON_TWO, ON_FOUR, FEW_STEPS)
    curves(Ranks(), folder, on_two, steps)
    run_ranks(2, curves, folder, on_two, steps)
    run_ranks(4, curves, folder, on_four, steps)
    return {count: torch.load(folder / f"curves-{count}.pth") for count in (1, 2, 4)}


ON_RANKS = [
    pytest.param(*case, count, marks=() if case in few else pytest.mark.long)
    for case in ALL
    for count, few in ((2, ON_TWO), (4, ON_FOUR))
]


@pytest.mark.faults
@pytest.mark.parametrize(("strategy", "case", "count"), ON_RANKS)
def test_the_loss_curve_is_the_same_on_one_two_and_four_ranks(
    found: dict[int, Any], strategy: str, case: str, count: int
) -> None:
    name = f"{strategy} {case}"
    alone, (losses, evaluation, trained) = found[1][name], found[count][name]
    rel = 1e-9 if "float64" in case else 1e-5
    assert losses == pytest.approx(alone[0], rel=rel)
    assert alone[0][-1] < alone[0][0]
    assert evaluation == pytest.approx(alone[1], rel=10 * rel)
    assert trained.keys() == alone[2].keys()
    assert all(tensor.shape == alone[2][key].shape for key, tensor in trained.items())


def orthogonal_steps(ranks: Ranks, folder: Path) -> None:
    """Ten steps of Muon, and what each hidden matrix has become."""
    run, state = (
        curve(folder, ranks, strategy="fsdp", optimizer="muon", dtype=torch.float32, total_windows=80),
        TrainState(),
    )
    losses = [train_step(run, state)[0] for _ in range(10)]
    weights_now = run.parallel.full(run.model.state_dict())
    if ranks.is_rank0:
        torch.save((losses, weights_now), folder / f"muon-{ranks.world_size}.pth")


def test_muon_orthogonalises_full_matrices_when_they_are_sharded(tmp_path: Path) -> None:
    """Its Newton-Schulz steps are in bfloat16: ten of them end 3 to 4% of the way from where float32 would, and
    another order of summing does as much. One that saw only a share of each matrix ends 50 to 100% away."""
    orthogonal_steps(Ranks(), tmp_path)
    run_ranks(2, orthogonal_steps, tmp_path)
    (alone, weights_alone), (shared, weights_shared) = (torch.load(tmp_path / f"muon-{n}.pth") for n in (1, 2))
    assert shared == pytest.approx(alone, rel=1e-4)
    initial = make_model().state_dict()
    for name in ("blocks.0.attention.qkv.weight", "blocks.1.mlp.up.weight", "blocks.1.mlp.down.weight"):
        moved = (weights_alone[name] - initial[name]).norm()
        assert (weights_shared[name] - weights_alone[name]).norm() < 0.08 * moved


# ── FSDP2: precision, recomputation, and when gradients are reduced ───────────────────────────────

LAYOUTS = [(precision, *how) for precision in ("fp32", "bf16") for how in ((True, 1.0), (False, 1.0), (False, 0.0))]
"""The precision; whether activations are recomputed; the share of the memory that full gradients may take."""
ALONE = [("fp32", False, 1.0), ("bf16", False, 1.0)]


def layouts(ranks: Ranks, folder: Path) -> None:
    """A few steps in each layout; the first rank writes down the losses, and one in float32 of the weights."""
    from pipeline.train.distributed import parallel

    found: dict[Any, Any] = {}
    for precision, recompute, share in LAYOUTS if ranks.world_size > 1 else ALONE:
        settings = {"strategy": "fsdp", "precision": precision, "recompute": recompute, "dropout": 0.3}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "_SHARE_OF_MEMORY", share)
            run = curve(folder, ranks, dtype=torch.float32, micro_batch_size=1, options={"lr": 1e-3}, **settings)
        state = TrainState()
        losses = [train_step(run, state)[0] for _ in range(3)]
        evaluate(run, state)
        sharded = summarize(run, "val", run.data.eval_windows["val"], in_float32=True).loss
        if isinstance(run.parallel, parallel.FSDP2):
            assert run.parallel.reduce_once == bool(share)
            with run.autocast():
                head = run.parallel.forward(torch.zeros(1, 4, dtype=torch.long)).head_weight
            assert head.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
            model = run.parallel.full_model()
            run = replace(run, parallel=Parallel(model=model)) if model else run
        if ranks.is_rank0:
            exact = summarize(run, "val", run.data.eval_windows["val"], in_float32=True).loss
            found[precision, recompute, share] = losses, sharded, exact
    if ranks.is_rank0:
        torch.save(found, folder / f"layouts-{ranks.world_size}.pth")
    config = runtime_config(processes=ranks.world_size, strategy="fsdp", precision="bf16")
    laid_out = parallelize(with_buffer, ranks, config)
    for model in (laid_out.model, laid_out.model_to_score()):
        assert model.get_buffer("powers").tolist() == [2.0, 4.0]


def with_buffer() -> LanguageModel:
    """A model with a buffer that is not in its state dict."""
    model = make_model()
    model.register_buffer("powers", torch.tensor([2.0, 4.0]), persistent=False)
    return model


def test_each_layout_of_fsdp2_gives_the_losses_of_one_process(tmp_path: Path) -> None:
    layouts(Ranks(), tmp_path)
    run_ranks(2, layouts, tmp_path)
    alone, shared = (torch.load(tmp_path / f"layouts-{count}.pth") for count in (1, 2))
    for precision, rel in (("fp32", 1e-6), ("bf16", 1e-4)):
        kept, again, later = (shared[precision, *how] for how in ((False, 1.0), (True, 1.0), (False, 0.0)))
        assert again == kept
        assert later[0] == pytest.approx(kept[0], rel=rel)
        assert kept[0] == pytest.approx(alone[precision, False, 1.0][0], rel=rel)
        for _, evaluated, exact in (kept, again, later):  # evaluations are in float32
            assert evaluated == pytest.approx(exact, rel=1e-6)


def compiled(ranks: Ranks, folder: Path) -> None:
    """Two steps in each way to compile, with the simplest of torch's compilers."""
    found: dict[Any, list[float]] = {}
    for strategy, compile in (("ddp", "no"), ("ddp", "model"), ("fsdp", "blocks")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
            settings = {"strategy": strategy, "compile": compile, "recompute": compile != "no"}
            run, state = curve(folder, ranks, dtype=torch.float32, micro_batch_size=2, **settings), TrainState()
        found[strategy, compile] = [train_step(run, state)[0] for _ in range(2)]
    for losses in found.values():
        assert losses == pytest.approx(found["ddp", "no"], rel=1e-6)


def test_compiled_models_that_recompute_train_on_two_ranks(tmp_path: Path) -> None:
    run_ranks(2, compiled, tmp_path)


# ── one decision for all ──────────────────────────────────────────────────────────────────────────


class Looks(EvalCallback):
    """Looks at the model and generates; stops the run at a step, or fails there."""

    name: ClassVar[str] = "looks"
    stop_at: int = -1
    fail_at: int = -1

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        assert {name: tensor.shape for name, tensor in event.model.state_dict().items()} == {
            name: tensor.shape for name, tensor in event.model.architecture.make().state_dict().items()
        }
        assert all(type(parameter) is torch.nn.Parameter for parameter in event.model.parameters())
        event.show(event.generate("the", max_new_tokens=4))
        event.memory["seen"] = event.memory.get("seen", 0) + 1
        if event.step == self.stop_at:
            raise StopTraining("enough")
        if event.step == self.fail_at:
            raise ValueError("broken")
        return {"looks.seen": float(event.memory["seen"])}


class StopOnOne(StopSignal):
    """The signal comes to one rank only, the given time that it is asked."""

    def __init__(self, time: int) -> None:
        super().__init__()
        self.left = time

    @property
    def number(self) -> int | None:
        self.left -= 1
        return 15 if self.left < 0 else None


def decisions(ranks: Ranks, folder: Path) -> None:
    """What all ranks must do as one; an assertion that fails ends the test with its traceback."""
    for strategy in ("ddp", "fsdp"):
        common = {"strategy": strategy, "dtype": torch.float64, "total_windows": 6 * BATCH, "every": 2}

        run, state = (
            curve(folder / f"{strategy}-stop", ranks, callbacks=(Looks(stop_at=4),), **common),
            TrainState(),
        )
        train(run, state)
        assert (state.step, state.stop_reason, state.complete) == (4, "enough", True)
        assert [row["looks.seen"] for row in state.history[:-1]] == [1.0, 2.0]
        assert bool(state.memory) == ranks.is_rank0
        if strategy == "fsdp":  # each its shares
            assert all(tensor.device_mesh.size() == 2 for tensor in state.best_weights.values())
        else:
            assert all(tensor.is_meta != ranks.is_rank0 for tensor in state.best_weights.values())

        run, state = (
            curve(folder / f"{strategy}-fail", ranks, callbacks=(Looks(fail_at=2),), **common),
            TrainState(),
        )
        with pytest.raises(PluginError, match="'looks', at step 2, raised ValueError: broken"):
            train(run, state)

        run, state = curve(folder / f"{strategy}-hooks", ranks, **common), TrainState()
        for _ in range(6):
            train_step(run, state)
        assert not run.parallel.forward(torch.zeros(1, 4, dtype=torch.long)).head_weight._backward_hooks

        for time in (0, 3, 9, 14):
            stop = StopOnOne(time if ranks.rank == 1 else 10**9)
            place = folder / f"{strategy}-{time}"
            run, state = curve(place, ranks, stop=stop, **common), TrainState()
            with pytest.raises(Interrupted, match="training stopped at step"):
                train(run, state)

    with pytest.raises(PipelineError, match="rank 1 has other data than rank 0"):
        ranks.check_same(f"{ranks.rank}", "other data")
    ranks.check_same("equal", "other data")


def test_all_ranks_decide_as_one(tmp_path: Path) -> None:
    """A callback's stop, its error and a signal that comes to one rank; the callback saw the full model."""
    run_ranks(2, decisions, tmp_path)


# ── from two ranks to one, and back ───────────────────────────────────────────────────────────────


def load_newest(ranks: Ranks, folder: Path, strategy: str, **changes: Any) -> tuple[TrainingRun, TrainState]:
    """A run with its newest state, if there is one."""
    run = curve(
        folder, ranks, strategy=strategy, total_windows=10 * BATCH, every=3, callbacks=(Looks(),), **changes
    )
    saved = run.saver.store.load() if ranks.is_rank0 else None
    told = ranks.on_rank0(lambda: to_meta(saved) if saved else None)
    saved = saved if ranks.is_rank0 else told
    return run, TrainState.restore(saved, run) if saved else TrainState()


def start_or_resume(
    ranks: Ranks, folder: Path, strategy: str, stop: StopSignal | None = None, **changes: Any
) -> tuple[TrainingRun, TrainState]:
    run, state = load_newest(ranks, folder, strategy, stop=stop, **changes)
    if stop is None:
        train(run, state)
    else:
        with pytest.raises(Interrupted):
            train(run, state)
    return run, state


def pass_on(ranks: Ranks, folder: Path) -> None:
    """Goes on with what one rank left, and leaves something for one rank."""
    for strategy in ("ddp", "fsdp"):
        run, state = start_or_resume(ranks, folder / f"{strategy}-one-to-two", strategy)
        saved = run.parallel.full(run.model.state_dict()), run.parallel.full(run.optimizer.state_dict())
        if ranks.is_rank0:
            torch.save((state.history, *saved), folder / f"{strategy}-one-to-two.pth")
        start_or_resume(ranks, folder / f"{strategy}-two-to-one", strategy, StopSignalAfter(25))
        start_or_resume(ranks, folder / f"{strategy}-two-to-two", strategy, StopSignalAfter(25))
        again, _ = start_or_resume(ranks, folder / f"{strategy}-two-to-two", strategy)
        straight, _ = start_or_resume(ranks, folder / f"{strategy}-straight", strategy)
        ends = [each.parallel.full(each.model.state_dict()) for each in (again, straight)]
        if ranks.is_rank0:
            assert_same_bits(*ends)


class StopSignalAfter(StopOnOne):
    """The signal comes to every rank at the same time."""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_stopped_on_two_ranks_resumes_on_one_and_vice_versa(strategy: str, passed_on: Path) -> None:
    straight, state = start_or_resume(Ranks(), passed_on / "straight", "one")
    back, back_state = start_or_resume(Ranks(), passed_on / f"{strategy}-two-to-one", "one")
    assert back.saver.store.checkpoints()[-1].name > "000001"  # the first one is of the two ranks
    history, model, optimizer = torch.load(passed_on / f"{strategy}-one-to-two.pth")
    for other in (back_state.history, history):
        assert len(other) == len(state.history)
        for row, expected in zip(other, state.history, strict=True):
            assert row == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(weights(back), weights(straight), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(model, weights(straight), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(optimizer, straight.optimizer.state_dict(), rtol=1e-6, atol=1e-9)


def check_resuming(ranks: Ranks, folder: Path, strategy: str, **changes: Any) -> None:
    """A run that is stopped and resumed ends as the uninterrupted one."""
    start_or_resume(ranks, folder / "stopped", strategy, StopSignalAfter(25), **changes)
    ends = [start_or_resume(ranks, folder / each, strategy, **changes) for each in ("stopped", "straight")]
    (run, state), (straight, expected) = ends
    assert_same_bits(*(each.parallel.full(each.model.state_dict()) for each in (run, straight)))
    assert state.history == expected.history


def resume_each_order(ranks: Ranks, folder: Path) -> None:
    for name, order in BATCH_SAMPLERS.items():
        check_resuming(ranks, folder / name, "ddp", batch_sampler=order)


@pytest.mark.long
def test_every_batch_sampler_resumes_on_two_ranks(tmp_path: Path) -> None:
    run_ranks(2, resume_each_order, tmp_path)


def resume_each_model(ranks: Ranks, folder: Path) -> None:
    for name in ("moe", "gla"):
        for strategy in ("ddp", "fsdp"):
            architecture = plugin_architecture(name)
            check_resuming(ranks, folder / f"{name}-{strategy}", strategy, architecture=architecture, dropout=0.3)


@pytest.mark.long
def test_the_models_of_plugins_resume_on_two_ranks(tmp_path: Path) -> None:
    run_ranks(2, resume_each_model, tmp_path)


@pytest.fixture(scope="module")
def passed_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for strategy in ("ddp", "fsdp"):
        start_or_resume(Ranks(), folder / f"{strategy}-one-to-two", "one", StopSignalAfter(25))
    run_ranks(2, pass_on, folder)
    return folder


# ── a state as shares ─────────────────────────────────────────────────────────────────────────────


def full_state(run: TrainingRun, state: TrainState) -> list[Any]:
    """Weights, moments and best weights, full on rank 0."""
    each = run.model.state_dict(), run.optimizer.state_dict(), state.best_weights
    return [run.parallel.full(value) for value in each]


def leave_shards(ranks: Ranks, folder: Path) -> None:
    """Two states of a run that was stopped; and one rank of two that must not, or cannot, write its share."""
    run, state = start_or_resume(ranks, folder / "stopped", "fsdp", StopSignalAfter(25), save_seconds=0.0)
    ended = full_state(run, state)
    if ranks.is_rank0:
        torch.save(ended, folder / "stopped.pth")

    run, state = load_newest(ranks, folder / "faults", "fsdp", save_seconds=0.0)
    (folder / "of-rank-0").mkdir(exist_ok=True)
    with pytest.raises(PipelineError, match=r"rank 1 does not see \S+of-rank-1.*runtime.strategy: fsdp"):
        write_shards({}, folder / f"of-rank-{ranks.rank}" / "shards", run.parallel.writers)
    run.saver.save_now(state.capture(run))
    if ranks.rank == 1:
        local = run.model.blocks[0].mlp.up.weight.to_local()  # type: ignore[operator]
        with torch.no_grad():
            before = local[0, 0].clone()
            local[0, 0] = float("nan")
    with pytest.raises(PipelineError, match=r"the weights of blocks\.0\.mlp\.up\.weight are not finite"):
        run.saver.save_now(state.capture(run))
    if ranks.rank == 1:
        with torch.no_grad():
            local[0, 0] = before

    for case in ("share", "rest"):
        with pytest.MonkeyPatch.context() as patch:
            if case == "share" and ranks.rank == 1:
                patch.setattr("pipeline.train.distributed.shards.save_tensors", fail_on_a_full_disk)
            if case == "rest" and ranks.is_rank0:
                patch.setattr("pipeline.train.checkpoint_store.save_tensors", fail_on_a_full_disk)
            with pytest.raises(PipelineError, match=r"run/000002: the disk is full: .* to write"):
                train(run, state)  # the error comes from the background
        assert [path.name for path in run.saver.store.checkpoints()] == ["000001"]
        assert not list(run.saver.store.folder.glob(".0*.partial-*"))  # rank 0 may be writing live.json
    train(run, state)
    assert state.complete
    assert [path.name for path in run.saver.store.checkpoints()][-1] > "000002"


def fail_on_a_full_disk(value: Any, path: Path, crc: bool = True) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def reshare(ranks: Ranks, folder: Path) -> None:
    """Reads on four ranks what two wrote, and goes on for a while."""
    found = full_state(*load_newest(ranks, folder / "stopped", "fsdp"))
    if ranks.is_rank0:
        torch.save(found, folder / "four.pth")
    start_or_resume(ranks, folder / "around", "fsdp", StopSignalAfter(12))


def end_on_two(ranks: Ranks, folder: Path) -> None:
    """Reads on two ranks what one wrote, and goes on to the end."""
    found = full_state(*load_newest(ranks, folder / "around", "fsdp"))
    if ranks.is_rank0:
        torch.save(found, folder / "two.pth")
    run, state = start_or_resume(ranks, folder / "around", "fsdp")
    ended = run.parallel.full(run.model.state_dict())
    if ranks.is_rank0:
        torch.save((state.history, ended), folder / "around.pth")


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `leave_shards` writes."""
    folder = tmp_path_factory.mktemp("shares")
    run_ranks(2, leave_shards, folder)
    return folder


@pytest.fixture
def stopped(shares: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run's folder."""
    return Path(shutil.copytree(shares / "stopped", tmp_path / "stopped"))


def newest(folder: Path) -> Path:
    return sorted(folder.glob("run/[0-9]*"))[-1]


def test_no_rank_writes_a_whole_tensor_and_one_process_reads_them_whole(shares: Path, stopped: Path) -> None:
    folder = newest(stopped)
    parts = {"00000.pth", "00001.pth"}
    assert {path.name for path in (folder / "shards").iterdir()} == parts
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(listed) == {"state.pth", "about.json", *(f"shards/{name}" for name in parts)}
    assert "state.pth" in verify_manifest(folder, "")  # each rank hashes what it writes
    for name in parts:  # half of the rows
        rows = torch.load(folder / "shards" / name, weights_only=True)["/model_state_dict/blocks.0.mlp.up.weight"]
        assert rows.shape == (32, 16)
    beside = torch.load(folder / "state.pth", weights_only=True)
    assert all(tensor.is_meta for tensor in beside["model_state_dict"].values())
    assert all(tensor.is_meta for tensor in beside["run"]["best_weights"].values())
    moments = [each for values in beside["optimizer_state_dict"]["state"].values() for each in values.values()]
    assert all(tensor.is_meta == (tensor.ndim > 0) for tensor in moments)

    alone = full_state(*load_newest(Ranks(), stopped, "one"))
    assert_same_bits(alone, torch.load(shares / "stopped.pth"))
    assert alone[2]  # best weights


def test_shards_of_two_ranks_resume_on_four_ranks_one_and_two(shares: Path, passed_on: Path) -> None:
    shutil.copytree(shares / "stopped", shares / "around")
    run_ranks(4, reshare, shares)
    assert_same_bits(torch.load(shares / "four.pth"), torch.load(shares / "stopped.pth"))
    alone = full_state(*start_or_resume(Ranks(), shares / "around", "one", StopSignalAfter(12)))
    assert not (newest(shares / "around") / "shards").exists()
    run_ranks(2, end_on_two, shares)
    assert_same_bits(torch.load(shares / "two.pth"), alone)
    straight, state = start_or_resume(Ranks(), passed_on / "straight", "one")
    history, ended = torch.load(shares / "around.pth")
    for row, expected in zip(history, state.history, strict=True):
        assert row == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(ended, weights(straight), rtol=1e-6, atol=1e-9)


def test_a_corrupt_shard_is_named_and_the_previous_checkpoint_is_used(
    stopped: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged = newest(stopped) / "shards" / "00001.pth"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    _, state = load_newest(Ranks(), stopped, "one")
    before = sorted(stopped.glob("run/[0-9]*"))[-2]
    assert state.step == json.loads((before / "about.json").read_text())["step"]
    said = capfd.readouterr().out
    assert f"the training checkpoint {newest(stopped)} is corrupt" in said
    assert f"({damaged} is damaged" in said


class Harmful:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_shard_that_would_run_code_is_refused(stopped: Path, tmp_path: Path) -> None:
    folder = newest(stopped)
    for share in (folder / "shards").glob("*.pth"):
        torch.save({"weights": Harmful(tmp_path / "made")}, share)
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"shards cannot be read \(Weights only load failed"):
        load_newest(Ranks(), stopped, "one")
    assert not (tmp_path / "made").exists()


# ── without the folder ────────────────────────────────────────────────────────────────────────────


def test_one_process_trains_without_the_code_for_several(trained: Path, tmp_path: Path) -> None:
    """Deleting the code for several processes leaves the result of one process as it was."""
    root = tmp_path / "project"
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns(".resume", "metrics", "checkpoint"))
    shutil.copytree(REPOSITORY / "pipeline", root / "pipeline")
    shutil.rmtree(root / "pipeline" / "train" / "distributed")
    for name in ("launch", "process_group", "shard"):
        (root / "pipeline" / "distributed" / f"{name}.py").unlink()
    settings = [part for value in TINY for part in ("--set", value)]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", *settings],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("train.json", "history.tsv"):
        assert (root / "metrics" / name).read_bytes() == (trained / "metrics" / name).read_bytes()


# ── which rank this is ────────────────────────────────────────────────────────────────────────────


def test_a_process_alone_is_no_rank() -> None:
    assert ranks_from_environment({}) is None
    # An sbatch script itself is no step: without srun it is one process.
    assert ranks_from_environment({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None


def test_torchruns_variables_say_which_rank_this_is() -> None:
    assert ranks_from_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == DistributedRanks(5, 8, 1)


def test_sruns_variables_say_which_rank_this_is_and_where_the_first_one_is() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "1234567"}
    assert ranks_from_environment(step) == DistributedRanks(3, 4, 1)
    for hosts, first in {
        "node[01-04,07],gpu3": "node01",
        "gpu3": "gpu3",
        "a-1,a-2": "a-1",
        "rack2-[9,11]": "rack2-9",
        "r[0-1]n[01-04]": "r0n01",
        "r[3,5-7]n[10],x": "r3n10",
        "node[1-3]-ib,node7-ib": "node1-ib",
        "": "localhost",
    }.items():
        assert slurm_address(step | {"SLURM_STEP_NODELIST": hosts}) == {
            "MASTER_ADDR": first,
            "MASTER_PORT": "34567",
        }


@pytest.mark.parametrize(
    ("free", "variables", "share"),
    [
        (8, {"SRUN_CPUS_PER_TASK": "8", "SLURM_NTASKS_PER_NODE": "8"}, 8),
        (8, {"SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "64"}, 8),
        (2, {"SLURM_CPUS_PER_TASK": "8"}, 2),  # srun bound it to fewer
        (8, {"SLURM_CPUS_ON_NODE": "64", "SLURM_NTASKS_PER_NODE": "8"}, 8),
        (64, {"SLURM_CPUS_ON_NODE": "64", "SLURM_NTASKS_PER_NODE": "8"}, 8),
        (64, {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "2"}, 32),
        (64, {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "3"}, 64),
        (64, {"LOCAL_WORLD_SIZE": "4", "SLURM_NTASKS_PER_NODE": "8"}, 16),
    ],
)
def test_a_rank_uses_its_own_cores(
    free: int, variables: dict[str, str], share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.distributed.placement.cores", lambda: free)
    assert cores_per_process(DistributedRanks(3, 8, 1), {"SLURM_PROCID": "3"} | variables) == share
    assert cores_per_process(Ranks(), {"SLURM_PROCID": "0"} | variables) == free


def test_a_rank_takes_a_gpu_that_it_sees() -> None:
    ranks = DistributedRanks(3, 4, 3)
    assert [ranks.gpu(visible, {}) for visible in (1, 2, 4)] == [0, 1, 3]
    assert [ranks.gpu(visible, {"LOCAL_RANK": "3"}) for visible in (1, 4)] == [3, 3]


def test_a_rank_without_a_gpu_is_an_error_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LOCAL_RANK": "3",
        "RANK": "0",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "",
        "MASTER_PORT": "",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with (
        pytest.raises(ParamsError, match="cuda:3, but there are 2 GPUs"),
        process_group(DistributedRanks(0, 4, 3), on_gpus=True),
    ):
        pass


def test_the_steps_of_a_slurm_job_have_their_own_ports() -> None:
    ports = {slurm_address({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": str(step)})["MASTER_PORT"] for step in range(9)}
    assert len(ports) == 9


def test_half_of_a_launchers_variables_are_an_error() -> None:
    with pytest.raises(ParamsError, match=r"SLURM_LOCALID.*torchrun or srun"):
        ranks_from_environment({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"})
    with pytest.raises(ParamsError, match="torchrun or srun"):
        ranks_from_environment({"RANK": "two", "WORLD_SIZE": "4"})


@pytest.mark.parametrize(
    ("rank", "size", "local"), [("4", "4", "0"), ("-1", "4", "0"), ("0", "0", "0"), ("1", "4", "-1")]
)
def test_a_rank_that_is_none_of_the_processes_is_an_error(rank: str, size: str, local: str) -> None:
    with pytest.raises(ParamsError, match=rf"rank {rank} .*{size} processes"):
        ranks_from_environment({"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local})


def test_every_window_of_a_batch_is_computed_by_exactly_one_rank(tmp_path: Path) -> None:
    from pipeline.train.batch import read_step

    for count in (1, 2, 3, 4):
        for batch_size, micro in ((8, 8), (8, 3), (7, 2), (3, 1)):
            seen, rounds, ends = [], set(), set()
            for rank in range(count):
                run = make_run(
                    tmp_path, batch_size=batch_size, total_windows=6 * batch_size - 1, micro_batch_size=micro
                )
                run = replace(run, parallel=replace(run.parallel, ranks=Ranks(rank, count, rank)))
                _, y = run.data.windows.batch(run.offsets(5))
                batches = list(read_step(run, 5)[1])
                seen += [row.tolist() for batch in batches for row in batch.targets if (row >= 0).any()]
                rounds.add(len(batches))
                ends.add(tuple(batch.last for batch in batches))
            assert sorted(seen) == sorted(y.tolist())
            assert len(rounds) == len(ends) == 1
            assert ends.pop()[-1]
