"""Learning-rate schedules: the rate of step k is each group's initial rate times multiplier(k)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the peak, then `name`.

    Attributes:
        name: "cosine" (Loshchilov & Hutter, 2017, without restarts) or "constant".
        total_steps: Steps of the whole run, numbered from 0.
        warmup_steps: Steps of the climb; its last one has the peak rate.
        final: The last step's multiplier (cosine).
    """

    name: str
    total_steps: int
    warmup_steps: int
    final: float

    def __call__(self, step: int) -> float:
        """The multiplier of `step`: above 0 at the first step, 1 at the peak, `final` at the last step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.name == "constant":
            return 1.0
        peak = max(self.warmup_steps - 1, 0)
        progress = (step - peak) / max(self.total_steps - 1 - peak, 1)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
