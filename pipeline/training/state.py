"""The state of a run between two steps, and its store: atomic files with checksums, the last ones kept."""

from __future__ import annotations

import io
import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.console import say
from pipeline.errors import CheckpointError, DataError, PipelineError
from pipeline.files import lock, read_json, sha256, write_atomically, write_json
from pipeline.model.checkpoint import load_tensors

FORMAT = 1
_STATES_KEPT = 2
_RUNS_KEPT = 3


@dataclass
class TrainState:
    """What changes as a run goes on, beside the model, the optimizer and the random generators.

    Attributes:
        step: Optimizer steps done; the data's position follows from it.
        objective_nats, objective_tokens: Sums of what the loss optimised since the last evaluation.
        grad_norm: The last step's gradient norm, before clipping.
        history: The numbers of each evaluation.
        timing: For each evaluation, seconds and processor seconds of training up to it.
        seconds, processor_seconds: Time spent in training steps.
        samples: Texts that callbacks showed, with their steps.
        memory: Each callback's own dict, by name.
        best_step, best_loss, best_weights: The evaluation with the lowest validation loss.
        stopped: Why a callback ended the run; empty while it has not.
        complete: Whether training has ended.
    """

    step: int = 0
    objective_nats: float = 0.0
    objective_tokens: int = 0
    grad_norm: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    processor_seconds: float = 0.0
    samples: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    best_step: int = -1
    best_loss: float = float("inf")
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    stopped: str = ""
    complete: bool = False

    def capture(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state as plain tensors and plain values."""
        return {
            "run": {name: getattr(self, name) for name in self.__dataclass_fields__},
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "random": random_state(),
        }

    @classmethod
    def restore(cls, saved: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
        """Puts model, optimizer and random generators back as they were; returns the rest."""
        model.load_state_dict(saved["model_state_dict"])
        optimizer.load_state_dict(saved["optimizer_state_dict"])
        restore_random_state(saved["random"])
        return cls(**saved["run"])


def random_state() -> dict[str, Any]:
    """Every random generator's state as plain tensors and plain values."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [
            torch.from_numpy(np.array(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }


def restore_random_state(saved: dict[str, Any]) -> None:
    """Puts every random generator back to what `random_state` returned."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))


class StateStore:
    """The states of one run: `.resume/FINGERPRINT/step-N.pt`, each with a JSON beside it that makes it valid."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.root = root
        self.folder = root / fingerprint

    @property
    def lock_file(self) -> Path:
        """The file whose lock says that a process works on this run."""
        return self.folder / "lock"

    def save(self, captured: dict[str, Any]) -> None:
        """Writes a state; a crash at any moment leaves the states before it whole."""
        step = captured["run"]["step"]
        path = self.folder / f"step-{step:09d}.pt"
        buffer = io.BytesIO()
        torch.save(captured, buffer)
        write_atomically(path, buffer.getvalue())
        complete = captured["run"]["complete"]
        write_json(path.with_suffix(".json"), {"step": step, "sha256": sha256(path), "complete": complete})
        for old in self._states()[:-_STATES_KEPT]:
            old.with_suffix(".json").unlink(missing_ok=True)
            old.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole; None where there is none. Damaged ones are named and passed over."""
        for leftover in self.folder.glob(".step-*.partial-*"):  # of a process that was killed while it saved
            leftover.unlink(missing_ok=True)
        states = self._states()
        for path in reversed(states):
            try:
                if read_json(path.with_suffix(".json"), "it makes a state valid")["sha256"] != sha256(path):
                    raise DataError("its sha256 is not the one that was written")
                return load_tensors(path)
            except (DataError, CheckpointError, KeyError, TypeError) as error:
                say(f"the saved state {path} is damaged and passed over ({error})")
        if states:
            say("every saved state of this run is damaged: training starts afresh")
        return None

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def prune(self) -> None:
        """Removes the runs that were not used for longest, keeping a few."""
        runs = [path for path in self.root.iterdir() if path.is_dir() and path != self.folder]
        runs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in runs[_RUNS_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)


def samples_as_jsonl(state: TrainState) -> str:
    """The samples, one JSON object a line."""
    return "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in state.samples)


def remove_states(root: Path) -> tuple[int, int]:
    """Removes the states of every run that no process works on; returns how many were removed and kept."""
    removed = kept = 0
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        try:
            with lock(folder / "lock", "training"):
                shutil.rmtree(folder)
            removed += 1
        except PipelineError:
            kept += 1
    return removed, kept
