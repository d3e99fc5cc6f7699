"""The learning-rate multiplier of each step: warm-up, then the schedule; both again for an extension."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipeline.core.errors import PluginError
from pipeline.plugin.calls import calling, label
from pipeline.plugin.components import Schedule

Multiplier = Callable[[int], float]


def multiplier(schedule: Schedule, steps: int, warmup: int) -> Multiplier:
    """The multiplier of each step of a run: a linear rise to 1 in `warmup` steps, then the schedule."""

    def at(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        with calling(schedule):
            value = schedule(step, steps, warmup)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
            raise PluginError(f"{label(schedule)} returned {value!r} for step {step} of {steps}, not a number ≥ 0")
        return float(value)

    return at


def extended(schedule: Schedule, done: int, further: int, warmup: int, peak: float) -> Multiplier:
    """The multiplier of each step of an extended run: re-warming and re-decaying (Ibrahim et al., 2024).

    After the finished run, the multiplier rises linearly from its final value to `peak`, in `warmup` steps or half
    of the further steps, whichever is less. Then it falls by the same schedule to its final value. If the final
    value of the schedule is 1, the multiplier stays 1.

    Args:
        done: Steps of the finished run.
        further: Steps of the extension.
        warmup: Warm-up steps of the finished run.
        peak: The second peak, as a share of the first one.
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
