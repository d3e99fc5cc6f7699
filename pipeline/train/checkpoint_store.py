"""Training checkpoints on disk: `.resume/FINGERPRINT/NUMBER/`, written atomically, with checksums."""

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
from pipeline.core.files import FileEntry, lock, report_full_disk, verify_manifest, write_json, write_manifest
from pipeline.core.paths import TOKEN_STORE
from pipeline.core.publication import sync
from pipeline.core.values import STRICT, NonNegativeInt, read_values
from pipeline.distributed.ranks import Ranks
from pipeline.model.checkpoint import first_not_finite, load_tensors, save_tensors, tensor_bytes
from pipeline.train.parallel import map_tensors

FORMAT = 6
_STATE, _SHARDS, _ABOUT, _IDENTITY = "state.pth", "shards", "about.json", "run.json"
_CHECKPOINTS_KEPT = 2
_RUNS_KEPT = 3
_MAX_SHARE_WAITING = 0.03
_MAX_SHARE_WRITING = {"cpu": 0.03, "cuda": 0.25}
"""On a CPU, a write in the background takes time from training; beside a GPU it costs only the disk's time."""


class CheckpointStore:
    """The training checkpoints of one run, numbered in the order of writing; only the newest ones are kept."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.root = root
        self.folder = root / fingerprint

    @property
    def lock_file(self) -> Path:
        """The lock file; a process that trains this run holds it."""
        return self.folder / "lock"

    def save(self, captured: dict[str, Any], writers: Ranks) -> None:
        """Writes a checkpoint atomically: a crash at any moment leaves the earlier checkpoints intact.

        Args:
            captured: What `TrainState.capture` returned: everything, or this rank's shards.
            writers: The processes that write it together; all of them must call this. A single process writes all.

        Raises:
            PipelineError: a weight is not finite, so the checkpoint would be useless; or the disk is full.
        """
        run, shards = captured["run"], dict[str, FileEntry]()
        writers.on_all_ranks(lambda: _check_finite(captured["model_state_dict"], run["step"]))
        path, partial = writers.on_rank0(self._next)
        about = {"step": run["step"], "total_steps": captured["total_steps"], "complete": run["complete"]}

        def complete() -> None:
            state = save_tensors(captured, partial / _STATE, crc=False)  # the manifest has its sha256
            write_json(partial / _ABOUT, about)
            write_manifest(partial, {**shards, _STATE: state})
            partial.rename(path)
            sync(self.folder)
            for old in self.checkpoints()[:-_CHECKPOINTS_KEPT]:
                shutil.rmtree(old, ignore_errors=True)

        with report_full_disk(tensor_bytes(captured), path):
            try:
                writers.on_rank0(partial.mkdir)
                if writers.world_size > 1:
                    from pipeline.train.distributed.shards import write_shards

                    captured, shards = write_shards(captured, partial / _SHARDS, writers)
                writers.on_rank0(complete)
            finally:
                writers.on_rank0(lambda: shutil.rmtree(partial, ignore_errors=True))

    def _next(self) -> tuple[Path, Path]:
        """The folder of the next checkpoint, and the temporary folder to write it in."""
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoints = self.checkpoints()
        path = self.folder / f"{int(checkpoints[-1].name) + 1 if checkpoints else 1:06d}"
        return path, self.folder / f".{path.name}.partial-{os.getpid()}"

    def load(self, check: Callable[[dict[str, Any]], None] = lambda saved: None) -> dict[str, Any] | None:
        """The newest checkpoint that is intact and passes `check`; None if there is none. Prints a line for each
        corrupt one that it skips.

        A sharded checkpoint is returned with meta tensors; `TrainState.restore` reads the shards.

        Args:
            check: Raises CheckpointError if a checkpoint cannot be used.
        """
        for leftover in self.folder.glob(".*.partial-*"):  # from a process that was killed while saving
            shutil.rmtree(leftover, ignore_errors=True)
        checkpoints = self.checkpoints()
        for path in reversed(checkpoints):
            try:
                verify_manifest(path, "the previous checkpoint is used")
                saved = load_tensors(path / _STATE)
                if (path / _SHARDS).is_dir():
                    saved["shards"] = str(path / _SHARDS)
                check(saved)
                return saved
            except (DataError, CheckpointError) as error:
                say(f"the training checkpoint {path} is corrupt; using the previous one ({error})")
        if checkpoints:
            say("every training checkpoint of this run is corrupt: training starts over")
        return None

    def checkpoints(self) -> list[Path]:
        """The checkpoint folders, oldest first. Other names, such as 000001.bak, are ignored."""
        found = [path for path in self.folder.glob("[0-9]*") if path.name.isascii() and path.name.isdigit()]
        return sorted((path for path in found if path.is_dir()), key=lambda path: int(path.name))

    def set_aside(self) -> Path:
        """Renames the newest checkpoint so that it is no longer used; returns its new path."""
        newest = self.checkpoints()[-1]
        return newest.rename(newest.with_name(f"{newest.name}.unusable-{time.time_ns()}"))

    def record_identity(self, identity: dict[str, Any]) -> list[dict[str, Any]]:
        """Writes this run's identity to run.json; returns those of the other runs, the most recently used first."""
        others = [path / _IDENTITY for path in self.root.glob("*") if path != self.folder]
        write_json(self.folder / _IDENTITY, identity)
        found = []
        for path in sorted(filter(Path.is_file, others), key=_modified, reverse=True):
            with suppress(OSError, DataError):
                found.append(read_values(path, dict[str, Any], ""))
        return found

    def prune(self) -> None:
        """Removes the least recently used runs; keeps a few finished and a few unfinished ones."""
        runs = saved_runs(self.root)
        extra = [run for run in runs if not run.checkpoints]
        for complete in (True, False):
            extra += [run for run in runs if run.checkpoints and run.complete == complete][_RUNS_KEPT:]
        for run in extra:
            if run.folder != self.folder:
                run.remove()


def to_meta(saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with meta tensors in place of weights and moments: rank 0 broadcasts their content later."""
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


def _check_finite(weights: dict[str, torch.Tensor], step: int) -> None:
    if name := first_not_finite(weights):
        raise PipelineError(
            f"training stopped at step {step}: the weights of {name} are not finite; the earlier "
            "checkpoints are kept: lower the optimizer's lr, or set train.grad_clip"
        )


# ── in the background ─────────────────────────────────────────────────────────────────────────────


@dataclass
class CheckpointSaver:
    """Writes training checkpoints in a background thread, one at a time, within a few percent of the training time.

    Attributes:
        store: The run's checkpoints.
        seconds: The minimum time between two checkpoints; 0 saves after every step.
        writers: The processes that write each checkpoint together: this one alone, or all ranks with their shards.
        device: The type of the device that trains.
        waited: Seconds that training waited for the last checkpoint: for the copy, and for an earlier write.
        written: Seconds that the last write took.
    """

    store: CheckpointStore
    seconds: float
    writers: Ranks = field(default_factory=Ranks)
    device: str = "cpu"
    waited: float = field(default=0.0, init=False)
    written: float = field(default=0.0, init=False)
    _ended: float = field(default_factory=time.monotonic, init=False)
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "saving"), init=False)
    _pending: Future[None] | None = field(default=None, init=False)

    def due(self) -> bool:
        """Whether the next checkpoint is due.

        Raises:
            PipelineError, OSError: the last one could not be written.
        """
        if self._pending is not None:
            if self.seconds and not self._pending.done():
                return False
            self.wait()
        if not self.seconds:
            return True
        writing = self.written / _MAX_SHARE_WRITING.get(self.device, _MAX_SHARE_WRITING["cpu"])
        return time.monotonic() - self._ended >= max(self.seconds, self.waited / _MAX_SHARE_WAITING, writing)

    def save_async(self, captured: dict[str, Any], copying: float) -> None:
        """Starts writing a captured state in the background; capturing it took `copying` seconds."""
        started = time.monotonic()
        self.wait()  # only rank 0 asks `due`; this rank may still be writing
        self.waited = copying + time.monotonic() - started
        self._pending = self._worker.submit(self._write, captured)

    def save_now(self, captured: dict[str, Any]) -> None:
        """Writes a captured state and waits for it."""
        self.wait()
        self._write(captured)

    def wait(self) -> None:
        """Waits for the background write, if any, and raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, captured: dict[str, Any]) -> None:
        started = time.monotonic()
        self.store.save(captured, self.writers)
        self._ended = time.monotonic()
        self.written = self._ended - started


# ── the list of runs ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class SavedRun:
    """A run with a folder in .resume.

    Attributes:
        folder: Its folder; the name is the run's fingerprint.
        checkpoints: The number of its checkpoints.
        step, total_steps: Steps done and steps in all, of the newest checkpoint.
        complete: Whether the run is finished.
        size: Bytes on disk.
        saved: The time of the newest checkpoint, in seconds since 1970.
        params: The params that identify it, by section; empty if its run.json is missing or damaged.
    """

    folder: Path
    checkpoints: int
    step: int
    total_steps: int
    complete: bool
    size: int
    saved: float
    params: dict[str, Any]

    def remove(self) -> bool:
        """Deletes the run's folder unless a process trains it; returns whether it did."""
        try:
            with lock(self.folder / "lock", "training"):
                shutil.rmtree(self.folder)
        except PipelineError:
            return False
        return True


def running_process(folder: Path) -> str:
    """The id of the process that trains the run in `folder`; empty if there is none."""
    try:
        with lock(folder / "lock", "training"):
            return ""
    except PipelineError:
        return (folder / "lock").read_text(encoding="utf-8").strip()


def saved_runs(root: Path) -> list[SavedRun]:
    """Every run with a folder in `root`, the most recently saved one first."""
    runs = [_saved_run(folder) for folder in root.glob("*") if folder.is_dir() and folder.name != TOKEN_STORE]
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
        params=_params(folder),
    )


def _params(folder: Path) -> dict[str, Any]:
    with suppress(OSError, DataError):
        found = read_values(folder / _IDENTITY, dict[str, Any], "").get("params")
        if isinstance(found, dict):
            return found
    return {}


@dataclass(frozen=True)
class _About:
    """The content of about.json."""

    __pydantic_config__ = STRICT

    step: NonNegativeInt
    total_steps: NonNegativeInt
    complete: bool


def _abouts(checkpoints: list[Path]) -> Iterator[_About]:
    """The readable about.json files, newest first."""
    for path in reversed(checkpoints):
        with suppress(OSError, DataError):
            yield read_values(path / _ABOUT, _About, "")
