"""The learning rate's multiplier at each step: warm-up and the schedule, once more where a run is extended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from pipeline.core.errors import PluginError
from pipeline.plugin.calls import calling, label
from pipeline.plugin.components import Schedule

Multiplier = Callable[[int], float]


def multiplier(schedule: Schedule, steps: int, warmup: int) -> Multiplier:
    """The multiplier of each step of a run: a linear climb to 1 in `warmup` steps, then the schedule."""
    return partial(_at, schedule, steps, warmup)


def _at(schedule: Schedule, steps: int, warmup: int, step: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    with calling(schedule):
        value = schedule(step, steps, warmup)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise PluginError(
            f"{label(schedule)} returned {value!r} for step {step} of {steps}, not a number from 0 on"
        )
    return float(value)


def extended(schedule: Schedule, done: int, further: int, warmup: int, peak: float) -> Multiplier:
    """The multiplier of a finished run that goes on.

    The rate climbs, linearly and over as many steps as at the beginning (half of the further ones at most), from
    where it ended to `peak` times the first peak, then falls by the same schedule to where it ended (re-warming and
    re-decaying: Ibrahim et al., 2024). A schedule that is still at 1 at its end stays there.

    Args:
        schedule: The schedule.
        done, further: Steps of the finished run, and steps after them.
        warmup: Steps of warm-up at the beginning.
        peak: The second peak as a share of the first one.
    """
    first, climb = multiplier(schedule, done, warmup), min(warmup, further // 2)
    again = multiplier(schedule, further, climb)
    ended, bottom = first(done - 1), again(further - 1)
    low = min(ended, peak)

    def at(step: int) -> float:
        if step < done:
            return first(step)
        if ended == 1.0:
            return 1.0
        if step - done < climb:
            return ended + (peak - ended) * (step - done + 1) / climb
        left = (again(step - done) - bottom) / (1 - bottom) if bottom < 1 else 1.0
        return low + (peak - low) * left

    return at
