"""The legs of a run: the run itself, or, where it is extended, up to its old end and then up to the new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.files import lock
from pipeline.data.batches import TrainingWindows
from pipeline.train.identity import changes
from pipeline.train.length import Length
from pipeline.train.loop import Run
from pipeline.train.ranks import Ranks
from pipeline.train.schedule import Schedule, extended
from pipeline.train.state import skeleton
from pipeline.train.store import StateStore

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import BudgetParams, TrainParams


@dataclass(frozen=True)
class Leg:
    """A whole run from its first step to an end: the run itself, or, where it is extended, each of both ends.

    Attributes:
        length, schedule: How long it is, and the learning rate's multiplier at each step.
        store: Where its states lie.
        identity: Everything that decides its result.
    """

    length: Length
    schedule: Callable[[int], float]
    store: StateStore
    identity: dict[str, Any]


def lengths(own: TrainParams, data: TrainingWindows) -> tuple[list[Length], list[Callable[[int], float]]]:
    """How long each leg is, and its schedule."""
    first = Length(own.batch_size, (_windows(own.budget, own.budget.amount, own.batch_size, data),))
    schedule = Schedule(total_steps=first.total_steps, **own.schedule.model_dump())
    if not own.extension.amount:
        return [first], [schedule]
    further = _windows(own.budget, own.extension.amount, own.batch_size, data)
    whole = replace(first, parts=(*first.parts, further))
    steps = whole.total_steps - first.total_steps
    return [first, whole], [schedule, extended(schedule, steps, own.extension.peak)]


def _windows(budget: BudgetParams, amount: int, batch_size: int, data: TrainingWindows) -> int:
    """The windows that an amount in the budget's unit stands for."""
    if budget.unit == "epochs":
        return amount * data.per_epoch
    if budget.unit == "tokens":
        return -(-amount // data.context_length)
    return amount * batch_size


def for_leg(plan: Run, leg: Leg) -> Run:
    """The same run up to the end of a leg."""
    return replace(
        plan,
        schedule=leg.schedule,
        length=leg.length,
        evaluate=replace(plan.evaluate, length=leg.length),
        saver=replace(plan.saver, store=leg.store, total_steps=leg.length.total_steps),
    )


@contextmanager
def locked(legs: list[Leg], paths: Paths, ranks: Ranks) -> Iterator[None]:
    """One writer: of this folder's outputs, and of each leg's states, wherever it runs."""
    with ExitStack() as held:

        def take() -> None:
            held.enter_context(lock(paths.root / ".resume" / "lock", "training in this folder"))
            for leg in legs:
                held.enter_context(lock(leg.store.lock_file, "training of this very run"))

        ranks.on_rank0(take)
        yield


def newest(legs: list[Leg], ranks: Ranks) -> tuple[int, dict[str, Any] | None]:
    """The leg to go on with, and its newest state; ranks but the first get its skeleton."""
    found: list[tuple[int, dict[str, Any] | None]] = []

    def look() -> tuple[int, Any]:
        found.append(_load(legs))
        number, saved = found[0]
        return number, skeleton(saved) if saved else None

    told = ranks.on_rank0(look)
    return found[0] if found else told


def _load(legs: list[Leg]) -> tuple[int, dict[str, Any] | None]:
    """The leg to go on with, and its newest state; where there is none, says what changed since the run before."""
    before = legs[-1].store.identify(legs[-1].identity)
    for number in reversed(range(len(legs))):
        saved = legs[number].store.load()
        if saved:
            return number, saved
    changed = changes(before, legs[-1].identity) if before else []
    if changed:
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        say(f"starting afresh, since this is not the run before: {'; '.join(changed[:6])}{more}")
    return 0, None
