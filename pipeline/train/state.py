"""The state of a run between two steps: all that the next step needs to go on as if nothing had happened."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from pipeline.train.run import TrainingRun


@dataclass
class TrainState:
    """What changes as a run goes on, beside the model, the optimizer and the random generators.

    Attributes:
        step: Optimizer steps done; the data's position and the learning rate follow from it.
        objective_nats, objective_tokens: Sums of what the loss optimised since the last evaluation.
        grad_norm: The last step's gradient norm, before clipping.
        history: The numbers of each evaluation.
        timing: For each evaluation, seconds and processor seconds of training up to it.
        seconds, processor_seconds: Time spent in training steps.
        samples: Texts that callbacks showed, with their steps.
        memory: Each callback's own dict, by name.
        best_step, best_loss, best_weights: The evaluation with the lowest validation loss; the weights are on the
            CPU: whole, with content on the first rank only, or under FSDP2 as each rank's shares.
        skipped: The steps that were skipped because their loss or gradient was not finite.
        conditions: What the run is computed with (see `Conditions`).
        final: What is published beside the history once training has ended (see `pipeline.train.publish.finish`).
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
    skipped: list[dict[str, Any]] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    complete: bool = False

    def draft(self) -> TrainState:
        """A copy that can be changed, and dropped, without changing this one; the best weights alone are shared."""
        return copy.deepcopy(self, {id(self.best_weights): self.best_weights})

    def adopt(self, draft: TrainState) -> None:
        """Becomes what `draft` is."""
        vars(self).update(vars(draft))

    def capture(self, run: TrainingRun) -> dict[str, Any]:
        """A copy of the state as tensors on the CPU and plain values: whole on the first rank, or under FSDP2 each
        rank's shares; all must call it."""
        parallel = run.parallel
        return {
            "run": dict(vars(self.draft())),
            "total_steps": run.total_steps,
            "model_state_dict": parallel.to_cpu(parallel.model.state_dict()),
            "optimizer_state_dict": parallel.to_cpu(run.optimizer.state_dict()),
            "random": random_state(),
        }

    @classmethod
    def restore(cls, saved: dict[str, Any], run: TrainingRun) -> TrainState:
        """Puts model, optimizer and random generators back as they were; returns the rest. All ranks must call it,
        the others with the `skeleton` of the first one's state.

        Raises:
            PipelineError: the shares that a state was written as cannot be read.
        """
        parallel = run.parallel
        if "shards" in saved:
            from pipeline.train.distributed.shards import read_shards

            saved = read_shards(saved, parallel)
        parallel.load_weights(saved["model_state_dict"])
        parallel.load_optimizer(run.optimizer, saved["optimizer_state_dict"])
        restore_random_state(saved["random"])
        fields = saved["run"]
        return cls(**{**fields, "best_weights": parallel.distribute(fields["best_weights"])})


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


def seed_generators(seed: int, place: int) -> None:
    """Seeds every random generator as a function of a run's seed and a place in its data.

    Each micro-batch begins with this: its dropout is the same whichever rank computes it, and after any resume.
    """
    first, second = np.random.SeedSequence([seed, place]).generate_state(2, np.uint32).tolist()
    torch.manual_seed(first << 31 | second >> 1)
    random.seed(first)
    np.random.seed(second)
