"""The phases of a run: one for a plain run; two for an extended run, to its first end and to its new end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.files import lock
from pipeline.core.fingerprint import fingerprint
from pipeline.data.batches import TrainingWindows
from pipeline.distributed.ranks import Ranks
from pipeline.plugin.components import Schedule
from pipeline.train.checkpoint_store import CheckpointStore, to_meta
from pipeline.train.identity import changes
from pipeline.train.length import Length
from pipeline.train.schedule import Multiplier, extended, multiplier
from pipeline.train.state import check_training_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.paths import Paths
    from pipeline.model.architecture import Architecture
    from pipeline.params.params import TrainParams


@dataclass(frozen=True)
class Phase:
    """A run from its first step to one of its ends. An extended run has two phases: without and with the extension.

    Attributes:
        length: The number of steps, and which windows each step reads.
        schedule: The learning-rate multiplier of each step.
        identity: Everything that decides the result; its hash names the checkpoint folder.
        store: The training checkpoints.
    """

    length: Length
    schedule: Multiplier
    identity: dict[str, Any]
    store: CheckpointStore


def phases(
    params: TrainParams,
    schedule: Schedule,
    windows: TrainingWindows,
    flops_per_token: float,
    identity: dict[str, Any],
    root: Path,
) -> list[Phase]:
    """The phases of the run that `params`, the section `train`, describe, in order.

    `flops_per_token` is what a token costs, for a budget in flops; `identity` everything that decides the result of
    the whole run; `root` the folder of all runs' checkpoints (.resume).
    """

    def count(amount: float) -> int:
        return _windows(params.budget.unit, amount, params.batch_size, windows, flops_per_token)

    first = Length(params.batch_size, (count(params.budget.amount),))
    warmup = params.schedule.warmup_steps
    rates = multiplier(schedule, first.total_steps, warmup)
    train = identity["params"]["train"]
    kept = {name: value for name, value in train.items() if name != "extension"}
    unextended = {**identity, "params": {**identity["params"], "train": kept}}
    found = [Phase(first, rates, unextended, CheckpointStore(root, fingerprint(unextended)))]
    if params.extension.amount:
        whole = replace(first, phase_windows=(*first.phase_windows, count(params.extension.amount)))
        steps = whole.total_steps - first.total_steps
        again = extended(schedule, first.total_steps, steps, warmup, params.extension.peak)
        found.append(Phase(whole, again, identity, CheckpointStore(root, fingerprint(identity))))
    return found


def _windows(unit: str, amount: float, batch_size: int, data: TrainingWindows, flops_per_token: float) -> int:
    """The windows that an amount of a unit stands for; the last one may go beyond it."""
    if unit == "flops":
        return math.ceil(amount / (flops_per_token * data.context_length))
    count = int(amount)
    if unit == "epochs":
        return count * data.per_epoch
    if unit == "tokens":
        return -(-count // data.context_length)
    return count * batch_size


@contextmanager
def locked(run: list[Phase], paths: Paths, ranks: Ranks) -> Iterator[None]:
    """Holds two kinds of locks: one on this project folder, and one on each phase's checkpoints, which several
    project folders may share."""
    with ExitStack() as held:

        def take() -> None:
            held.enter_context(lock(paths.root / ".resume" / "lock", "training in this folder"))
            for phase in run:
                held.enter_context(lock(phase.store.lock_file, "training of this run"))

        ranks.on_rank0(take)
        yield


def newest(run: list[Phase], ranks: Ranks, architecture: Architecture) -> tuple[int, dict[str, Any] | None]:
    """The index of the phase to resume and its newest valid checkpoint; None if there is none. Ranks other than 0
    get the checkpoint with meta tensors. All ranks must call it."""
    return ranks.on_rank0(
        lambda: _load(run, architecture), to_others=lambda found: (found[0], found[1] and to_meta(found[1]))
    )


def _load(run: list[Phase], architecture: Architecture) -> tuple[int, dict[str, Any] | None]:
    """As `newest`, on rank 0. Without a checkpoint, prints how this run differs from the most similar one."""
    others = run[-1].store.record_identity(run[-1].identity)
    for number in reversed(range(len(run))):
        steps = run[number].length.total_steps
        saved = run[number].store.load(
            partial(check_training_checkpoint, architecture=architecture, total_steps=steps)
        )
        if saved:
            return number, saved
    changed = min((changes(other, run[-1].identity) for other in others), key=len, default=[])
    if changed:
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        what = "training starts over; the most similar run, whose checkpoints are kept, differs in"
        say(f"{what}: {'; '.join(changed[:6])}{more}")
    return 0, None
