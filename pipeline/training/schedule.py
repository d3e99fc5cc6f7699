"""Learning-rate schedules: the rate of step k is each group's initial rate times multiplier(k)."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
        left = (1 + math.cos(math.pi * progress)) / 2 if self.name == "cosine" else 1 - progress
        return self.final + (1 - self.final) * left
