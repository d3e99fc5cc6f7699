"""The phases of a run: the run itself, or, where it is extended, up to its old end and then up to the new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.files import lock
from pipeline.core.fingerprint import fingerprint
from pipeline.data.batches import TrainingWindows
from pipeline.plugin.components import Schedule
from pipeline.train.checkpoint_store import CheckpointStore, to_meta
from pipeline.train.identity import changes
from pipeline.train.length import Length
from pipeline.train.ranks import Ranks
from pipeline.train.schedule import Multiplier, extended, multiplier
from pipeline.train.state import check_training_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.paths import Paths
    from pipeline.model.architecture import Architecture
    from pipeline.params.params import BudgetParams, TrainParams


@dataclass(frozen=True)
class Phase:
    """A whole run from its first step to an end: the run itself, or, where it is extended, each of both ends.

    Attributes:
        length: How long it is, and what each step reads.
        schedule: The learning rate's multiplier at each step.
        identity: Everything that decides its result.
        store: Where its states lie.
    """

    length: Length
    schedule: Multiplier
    identity: dict[str, Any]
    store: CheckpointStore


def phases(
    params: TrainParams, schedule: Schedule, windows: TrainingWindows, identity: dict[str, Any], root: Path
) -> list[Phase]:
    """The phases of the run that `params` describe.

    Args:
        params: The section `train`.
        schedule: The schedule that it chooses.
        windows: The training windows.
        identity: What decides the whole run's result; the first phase's is that of the run without extension.
        root: The folder of all runs' states.
    """
    amount = _windows(params.budget, params.budget.amount, params.batch_size, windows)
    first = Length(params.batch_size, (amount,))
    warmup = params.schedule.warmup_steps
    rates = multiplier(schedule, first.total_steps, warmup)
    train = identity["params"]["train"]
    kept = {name: value for name, value in train.items() if name != "extension"}
    unextended = {**identity, "params": {**identity["params"], "train": kept}}
    found = [Phase(first, rates, unextended, CheckpointStore(root, fingerprint(unextended)))]
    if params.extension.amount:
        further = _windows(params.budget, params.extension.amount, params.batch_size, windows)
        whole = replace(first, phase_windows=(*first.phase_windows, further))
        steps = whole.total_steps - first.total_steps
        again = extended(schedule, first.total_steps, steps, warmup, params.extension.peak)
        found.append(Phase(whole, again, identity, CheckpointStore(root, fingerprint(identity))))
    return found


def _windows(budget: BudgetParams, amount: int, batch_size: int, data: TrainingWindows) -> int:
    """The windows that an amount in the budget's unit stands for."""
    if budget.unit == "epochs":
        return amount * data.per_epoch
    if budget.unit == "tokens":
        return -(-amount // data.context_length)
    return amount * batch_size


@contextmanager
def locked(run: list[Phase], paths: Paths, ranks: Ranks) -> Iterator[None]:
    """One writer: of this folder's outputs, and of each phase's states, wherever it runs."""
    with ExitStack() as held:

        def take() -> None:
            held.enter_context(lock(paths.root / ".resume" / "lock", "training in this folder"))
            for phase in run:
                held.enter_context(lock(phase.store.lock_file, "training of this run"))

        ranks.on_rank0(take)
        yield


def newest(run: list[Phase], ranks: Ranks, architecture: Architecture) -> tuple[int, dict[str, Any] | None]:
    """The phase to continue, and its newest state (None: there is none) that fits the architecture; other ranks
    get the state's to_meta."""
    return ranks.on_rank0(
        lambda: _load(run, architecture), to_others=lambda found: (found[0], found[1] and to_meta(found[1]))
    )


def _load(run: list[Phase], architecture: Architecture) -> tuple[int, dict[str, Any] | None]:
    """The phase to continue, and its newest state; where there is none, says what changed since the run before."""
    before = run[-1].store.record_identity(run[-1].identity)
    for number in reversed(range(len(run))):
        steps = run[number].length.total_steps
        saved = run[number].store.load(
            partial(check_training_checkpoint, architecture=architecture, total_steps=steps)
        )
        if saved:
            return number, saved
    changed = changes(before, run[-1].identity) if before else []
    if changed:
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        say(f"training starts over, since this is not the same run as before: {'; '.join(changed[:6])}{more}")
    return 0, None
