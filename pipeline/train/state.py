"""The state of a run between two steps: everything that an exact resume needs."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import ConfigDict, Field

from pipeline.core.errors import CheckpointError
from pipeline.core.values import STRICT, NonNegativeInt, check_fields, explain
from pipeline.model.checkpoint import check_weights
from pipeline.model.run_record import RunRecord
from pipeline.train.runtime_config import RuntimeConfig

if TYPE_CHECKING:
    from pipeline.model.architecture import Architecture
    from pipeline.train.run import TrainingRun


@dataclass
class TrainState:
    """The mutable part of a run, except model, optimizer and random states.

    Attributes:
        step: Optimizer steps done; it decides the data position and the learning rate.
        objective_nats, objective_tokens: The sum of the training loss and its targets since the last evaluation.
        grad_norm: The last step's gradient norm, before clipping.
        history: The rows of history.tsv, one for each evaluation.
        steps: The rows of steps.tsv, one for every `train.log_every`-th step.
        timing: The rows of timing.tsv, one for each evaluation.
        seconds, processor_seconds: Time spent in training steps.
        samples: Texts that callbacks showed, with their steps.
        memory: Each callback's `memory`, by name: on every rank for callbacks with step methods, else on rank 0.
        best_step, best_loss, best_weights: The evaluation with the lowest validation loss. The weights are on the
            CPU: full on rank 0 and meta tensors on the others, or under FSDP2 each rank's shards.
        skipped: The steps that were skipped because their loss or gradient was not finite.
        runtime_config: The fields of `RuntimeConfig`.
        final: What a finished run publishes beside the history (see `pipeline.train.publish.finalize`).
        stop_reason: Why a callback ended the run; empty if none did.
        complete: Whether training is finished.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {**STRICT, "arbitrary_types_allowed": True}

    step: NonNegativeInt = 0
    objective_nats: float = 0.0
    objective_tokens: NonNegativeInt = 0
    grad_norm: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    timing: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    processor_seconds: float = 0.0
    samples: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    best_step: Annotated[int, Field(ge=-1, lt=2**63)] = -1
    best_loss: Annotated[float, Field(allow_inf_nan=True)] = float("inf")
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    runtime_config: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    stop_reason: str = ""
    complete: bool = False

    def copy(self) -> TrainState:
        """A copy that can be changed independently. It shares the best weights and the rows of `steps`, which are
        never modified."""
        shared = {id(self.best_weights): self.best_weights, id(self.steps): list(self.steps)}
        return deepcopy(self, shared)

    def update_from(self, other: TrainState) -> None:
        """Takes over all fields of `other`."""
        vars(self).update(vars(other))

    def capture(self, run: TrainingRun) -> dict[str, Any]:
        """The whole state as CPU tensors and plain values, for a training checkpoint: full on rank 0, or under
        FSDP2 each rank's shards. All ranks must call it."""
        parallel = run.parallel
        return {
            "run": {**vars(self.copy()), "memory": parallel.to_cpu(self.memory)},
            "total_steps": run.total_steps,
            "model_state_dict": parallel.to_cpu(parallel.model.state_dict()),
            "optimizer_state_dict": parallel.to_cpu(run.optimizer.state_dict()),
            "scaler": run.scaler.state_dict(),
            "random": random_state(),
        }

    @classmethod
    def restore(cls, saved: dict[str, Any], run: TrainingRun) -> TrainState:
        """Restores model, optimizer and random states from a checkpoint; returns the rest of the state. All ranks
        must call it, ranks other than 0 with `to_meta` of rank 0's checkpoint.

        Raises:
            CheckpointError: its shards cannot be read, or it does not fit the run.
        """
        parallel = run.parallel
        if "shards" in saved:
            from pipeline.train.distributed.shards import read_shards

            saved = read_shards(saved, parallel)
        parallel.load_weights(saved["model_state_dict"])
        try:
            parallel.load_optimizer(run.optimizer, saved["optimizer_state_dict"])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            raise CheckpointError(f"the optimizer's state is not that of {run.optimizer} ({reason})") from None
        run.scaler.load_state_dict(saved["scaler"])
        restore_random_state(saved["random"])
        fields = saved["run"]
        best, memory = parallel.distribute(fields["best_weights"]), parallel.place_nested(fields["memory"])
        return cls(**{**fields, "best_weights": best, "memory": memory})


@dataclass(frozen=True)
class _Final:
    """The content of `TrainState.final` of a finished run."""

    __pydantic_config__ = STRICT

    train: dict[str, float]
    last: dict[str, float]
    best: dict[str, float]
    peak_memory_bytes: NonNegativeInt
    record: dict[str, Any]


def check_training_checkpoint(saved: dict[str, Any], architecture: Architecture, total_steps: int) -> None:
    """Checks a training checkpoint against the run: `total_steps` steps, a model of this architecture.

    Raises:
        CheckpointError: a value is missing, unknown, of another type or out of bounds, or a tensor does not fit.
    """
    try:
        state = check_fields(TrainState, saved["run"])
        if state.runtime_config:
            check_fields(RuntimeConfig, state.runtime_config)
        if saved["total_steps"] != total_steps or state.step > total_steps:
            raise ValueError(f"step {state.step} of {saved['total_steps']}, but the run has {total_steps} steps")
        if state.complete:
            final = check_fields(_Final, state.final)
            check_fields(RunRecord, final.record)
            _ = final.best["loss"], final.last["loss"], state.history[-1]["tokens"]
        if any("step" not in row for row in (*state.history, *state.steps)):
            raise ValueError("a row of history or steps lacks the key step")
        json.dumps([state.samples, state.skipped, state.history, state.steps, state.final], allow_nan=False)
        _check_scaler(saved["scaler"], state.runtime_config.get("precision", ""))
        optimizer = saved["optimizer_state_dict"]
        _ = optimizer["state"].items(), [group["params"] for group in optimizer["param_groups"]]
        now = random_state()
        try:
            restore_random_state(saved["random"])
        finally:
            restore_random_state(now)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
        reason = explain(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"it holds invalid values: {' '.join(reason.split())[:300]}") from None
    if "shards" not in saved:  # each rank checks its shards when it reads them
        check_weights(saved["model_state_dict"], architecture, "its weights")
        if state.best_step >= 0:
            check_weights(state.best_weights, architecture, "its best weights")


def _check_scaler(saved: dict[str, Any], precision: str) -> None:
    """Raises ValueError unless `saved` is the state of a gradient scaler, in fp16; otherwise it is empty."""
    wanted = torch.amp.GradScaler("cpu", enabled=precision == "fp16").state_dict()
    if saved.keys() != wanted.keys() or any(type(saved[name]) is not type(wanted[name]) for name in wanted):
        raise ValueError(f"scaler holds {saved}, but in {precision} it has {', '.join(wanted) or 'no values'}")


def random_state() -> dict[str, Any]:
    """The state of all random generators, as tensors and plain values."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "python": [version, list(internal), gauss],
        "numpy": [
            torch.from_numpy(np.array(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }


def restore_random_state(saved: dict[str, Any]) -> None:
    """Restores all random generators to what `random_state` returned."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))


def seed_generators(seed: int, *position: int) -> None:
    """Seeds all random generators from a run's seed and a position in the run.

    Each micro-batch starts with this and the index of its first window, so that its dropout depends neither on the
    rank that computes it nor on a resume.
    """
    first, second = np.random.SeedSequence([seed, *position]).generate_state(2, np.uint32).tolist()
    if torch.accelerator.is_available():
        torch.manual_seed(first << 31 | second >> 1)
    else:  # the same for a CPU alone, without the stack trace that torch formats for other devices: 70 µs
        torch.default_generator.manual_seed(first << 31 | second >> 1)
    random.seed(first)
    np.random.seed(second)
