"""Where states are kept: `.resume/FINGERPRINT/NUMBER/`, whole or absent, each with its checksums."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.core.console import say
from pipeline.core.errors import CheckpointError, DataError, PipelineError
from pipeline.core.files import lock, report_full_disk, verify_manifest, write_json, write_manifest
from pipeline.core.values import STRICT, NonNegativeInt, read_values
from pipeline.model.checkpoint import first_not_finite, load_tensors, save_tensors, tensor_bytes
from pipeline.train.parallel import map_tensors
from pipeline.train.ranks import Ranks

FORMAT = 5
_STATE, _SHARDS, _ABOUT, _IDENTITY = "state.pth", "shards", "about.json", "run.json"
_CHECKPOINTS_KEPT = 2
_RUNS_KEPT = 3
_MAX_SHARE_OF_TIME = 0.03


class CheckpointStore:
    """The states of one run, numbered as they were written; the newest ones are kept."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.root = root
        self.folder = root / fingerprint

    @property
    def lock_file(self) -> Path:
        """The file whose lock says that a process works on this run."""
        return self.folder / "lock"

    def save(self, captured: dict[str, Any], writers: Ranks) -> None:
        """Writes a state; a crash at any moment leaves the states before it whole.

        Args:
            captured: The state, or this rank's shares of it.
            writers: The processes that write it together, all of which must call it; one alone has all of it.

        Raises:
            PipelineError: a weight is not finite, so the state would be of no use; or the disk is full.
        """
        run, apart = captured["run"], writers.world_size > 1
        writers.on_all_ranks(lambda: _check_finite(captured["model_state_dict"], run["step"]))
        path, partial = writers.on_rank0(self._next)
        about = {"step": run["step"], "total_steps": captured["total_steps"], "complete": run["complete"]}
        with report_full_disk(tensor_bytes(captured), path):
            try:
                writers.on_rank0(partial.mkdir)
                if apart:
                    from pipeline.train.distributed.shards import write_shards

                    captured = write_shards(captured, partial / _SHARDS, writers)
                writers.on_rank0(lambda: self._complete(captured, about, partial, path))
            finally:
                writers.on_rank0(lambda: shutil.rmtree(partial, ignore_errors=True))

    def _next(self) -> tuple[Path, Path]:
        """The folder of the state that is to be written, and the one that it is written in."""
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoints = self.checkpoints()
        path = self.folder / f"{int(checkpoints[-1].name) + 1 if checkpoints else 1:06d}"
        return path, self.folder / f".{path.name}.partial-{os.getpid()}"

    def _complete(self, captured: dict[str, Any], about: dict[str, Any], partial: Path, path: Path) -> None:
        """Adds what the first rank writes alone, and gives the state its name; older ones go."""
        save_tensors(captured, partial / _STATE, crc=False)  # the manifest has a sha256 of it
        write_json(partial / _ABOUT, about)
        write_manifest(partial)
        partial.rename(path)
        _sync(self.folder)
        for old in self.checkpoints()[:-_CHECKPOINTS_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, check: Callable[[dict[str, Any]], None] = lambda saved: None) -> dict[str, Any] | None:
        """The newest state that is whole and passes `check`, which raises CheckpointError where it does not; None
        where there is none. Damaged ones are named and skipped.

        One that was written as shares comes without their content, which `TrainState.restore` reads.
        """
        for leftover in self.folder.glob(".*.partial-*"):  # of a process that was killed while it saved
            shutil.rmtree(leftover, ignore_errors=True)
        checkpoints = self.checkpoints()
        for path in reversed(checkpoints):
            try:
                verify_manifest(path, "the one before it is taken")
                saved = load_tensors(path / _STATE)
                if (path / _SHARDS).is_dir():
                    saved["shards"] = str(path / _SHARDS)
                check(saved)
                return saved
            except (DataError, CheckpointError) as error:
                say(f"the saved state {path} is corrupt; using the one before it ({error})")
        if checkpoints:
            say("every saved state of this run is corrupt: training starts over")
        return None

    def checkpoints(self) -> list[Path]:
        """The folders of the states, oldest first; a copy, such as 000001.bak, is none."""
        found = [path for path in self.folder.glob("[0-9]*") if path.name.isascii() and path.name.isdigit()]
        return sorted((path for path in found if path.is_dir()), key=lambda path: int(path.name))

    def set_aside(self) -> Path:
        """Takes the newest state out of use: the folder that it is now."""
        newest = self.checkpoints()[-1]
        return newest.rename(newest.with_name(f"{newest.name}.unusable-{time.time_ns()}"))

    def record_identity(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Writes down what decides this run's result; returns the same of the run that was used last, if any."""
        others = [path / _IDENTITY for path in self.root.glob("*") if path != self.folder]
        newest = max((path for path in others if path.is_file()), key=_modified, default=None)
        write_json(self.folder / _IDENTITY, identity)
        try:
            return read_values(newest, dict[str, Any], "") if newest else None
        except (OSError, DataError):
            return None

    def prune(self) -> None:
        """Removes the runs that were not used for longest, keeping a few finished and a few unfinished ones."""
        runs = saved_runs(self.root)
        extra = [run for run in runs if not run.checkpoints]
        for complete in (True, False):
            extra += [run for run in runs if run.checkpoints and run.complete == complete][_RUNS_KEPT:]
        for run in extra:
            if run.folder != self.folder:
                run.remove()


def to_meta(saved: dict[str, Any]) -> dict[str, Any]:
    """A state without the content of weights and moments, which rank 0 sends to the others as it restores them."""
    emptied: dict[str, Any] = map_tensors(lambda tensor: tensor.to("meta"), saved)
    return {**emptied, "random": saved["random"]}


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a running process has just removed it
        return 0.0


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _sync(folder: Path) -> None:
    """Makes a rename in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_finite(weights: dict[str, torch.Tensor], step: int) -> None:
    if name := first_not_finite(weights):
        raise PipelineError(
            f"training stopped at step {step}: the weights of {name} are not finite; the states before are "
            "kept: lower the optimizer's lr, or set train.grad_clip"
        )


# ── in the background ─────────────────────────────────────────────────────────────────────────────


@dataclass
class CheckpointSaver:
    """Writes states beside the training, one at a time, often enough but never for more than a few percent of it.

    Attributes:
        store: Where to.
        seconds: The least time between two states; 0 is after every step.
        writers: The processes that write each state together: this one alone, or each its share.
        cost: Seconds that the last state took, copy and write.
    """

    store: CheckpointStore
    seconds: float
    writers: Ranks = field(default_factory=Ranks)
    cost: float = field(default=0.0, init=False)
    _ended: float = field(default_factory=time.monotonic, init=False)
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "saving"), init=False)
    _pending: Future[None] | None = field(default=None, init=False)

    def due(self) -> bool:
        """Whether it is time for another state.

        Raises:
            PipelineError, OSError: the last one could not be written.
        """
        if self._pending is not None:
            if self.seconds and not self._pending.done():
                return False
            self.wait()
        if not self.seconds:
            return True
        return time.monotonic() - self._ended >= max(self.seconds, self.cost / _MAX_SHARE_OF_TIME)

    def save_async(self, captured: dict[str, Any], copying: float) -> None:
        """Hands a copy of the state over, which took `copying` seconds to make; it is written in the background."""
        self.wait()  # the first rank, which asks whether it is `due`, may be done sooner than this one
        self._pending = self._worker.submit(self._write, captured, copying)

    def save_now(self, captured: dict[str, Any]) -> None:
        """Writes a state before anything else is done."""
        self.wait()
        self._write(captured, 0.0)

    def wait(self) -> None:
        """Waits for the state that is being written, if any."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, captured: dict[str, Any], copying: float) -> None:
        started = time.monotonic()
        self.store.save(captured, self.writers)
        self._ended = time.monotonic()
        self.cost = self._ended - started + copying


# ── the runs there are ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class SavedRun:
    """A run of which states are kept.

    Attributes:
        folder: Where they lie; its name is the run's fingerprint.
        checkpoints: How many.
        step, total_steps: How far it got, and was to go.
        complete: Whether it ended.
        size: Bytes.
        saved: When its last state was written, in seconds since 1970.
    """

    folder: Path
    checkpoints: int
    step: int
    total_steps: int
    complete: bool
    size: int
    saved: float

    def remove(self) -> bool:
        """Forgets the run, unless a process works on it; returns whether it did."""
        try:
            with lock(self.folder / "lock", "training"):
                shutil.rmtree(self.folder)
        except PipelineError:
            return False
        return True

    @property
    def running(self) -> str:
        """The process that works on the run; empty for none."""
        return running_process(self.folder)


def running_process(folder: Path) -> str:
    """The process that works on the run in `folder`; empty for none."""
    try:
        with lock(folder / "lock", "training"):
            return ""
    except PipelineError:
        return (folder / "lock").read_text(encoding="utf-8").strip()


def saved_runs(root: Path) -> list[SavedRun]:
    """Every run with a folder below `root`, the one that was saved last first."""
    runs = [_saved_run(folder) for folder in root.glob("*") if folder.is_dir()]
    return sorted(runs, key=lambda run: run.saved, reverse=True)


def _saved_run(folder: Path) -> SavedRun:
    checkpoints = CheckpointStore(folder.parent, folder.name).checkpoints()
    about = next(_abouts(checkpoints), _About(step=0, total_steps=0, complete=False))
    return SavedRun(
        folder=folder,
        checkpoints=len(checkpoints),
        step=about.step,
        total_steps=about.total_steps,
        complete=about.complete,
        size=sum(_bytes(path) for path in folder.rglob("*")),
        saved=_modified(checkpoints[-1] if checkpoints else folder),
    )


@dataclass(frozen=True)
class _About:
    """What about.json holds."""

    __pydantic_config__ = STRICT

    step: NonNegativeInt
    total_steps: NonNegativeInt
    complete: bool


def _abouts(checkpoints: list[Path]) -> Iterator[_About]:
    """What the newest readable state says of itself."""
    for path in reversed(checkpoints):
        with suppress(OSError, DataError):
            yield read_values(path / _ABOUT, _About, "")
