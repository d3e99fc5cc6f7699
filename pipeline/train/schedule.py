"""Learning-rate schedules: the rate of step k is each group's initial rate times multiplier(k)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the peak, then `name`.

    Attributes:
        name: "cosine" (Loshchilov & Hutter, 2017, without restarts), "linear", "constant", or "wsd": warm-up,
            stable, then a linear decay (Hu et al., 2024).
        total_steps: Steps of the whole run, numbered from 0.
        warmup_steps: Steps of the climb; its last one has the peak rate.
        final: The last step's multiplier, but for "constant".
        decay: The share of all steps in which "wsd" decays.
    """

    name: str
    total_steps: int
    warmup_steps: int
    final: float
    decay: float

    def __call__(self, step: int) -> float:
        """The multiplier of `step`: above 0 at the first step, 1 at the peak, `final` at the last step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        peak = max(self.warmup_steps - 1, 0)
        if self.name == "wsd":
            peak = max(peak, self.total_steps - 1 - round(self.decay * self.total_steps))
        if self.name == "constant" or step <= peak:
            return 1.0
        progress = min((step - peak) / (self.total_steps - 1 - peak), 1.0)
        match self.name:
            case "cosine":
                left = (1 + math.cos(math.pi * progress)) / 2
            case "linear" | "wsd":
                left = 1 - progress
            case _:
                raise ValueError(f"there is no schedule {self.name!r}")
        return self.final + (1 - self.final) * left


def extended(schedule: Schedule, steps: int, peak: float) -> Callable[[int], float]:
    """The schedule of a finished run that is extended by `steps` more.

    The rate climbs, linearly and over as many steps as at the beginning (half of the further ones at the most),
    from where it ended to `peak` times the first peak, then falls to `final` by the same rule; "constant" stays as
    it is (re-warming and re-decaying: Ibrahim et al., 2024).
    """
    warmup = min(schedule.warmup_steps, steps // 2)
    again = replace(schedule, total_steps=steps, warmup_steps=warmup, final=min(schedule.final / peak, 1.0))

    def multiplier(step: int) -> float:
        further = step - schedule.total_steps
        if further < 0:
            return schedule(step)
        if schedule.name == "constant":
            return 1.0
        if further < warmup:
            ended = schedule(schedule.total_steps - 1)
            return ended + (peak - ended) * (further + 1) / warmup
        return peak * again(further)

    return multiplier
