"""The contract of a schedule."""

from __future__ import annotations

import math

from pipeline.authoring.testing.toy import instance_of
from pipeline.plugin.components import Schedule


def check_schedule(component: type[Schedule] | Schedule) -> None:
    """Checks a schedule: finite factors ≥ 0 at all steps of runs of several lengths, reproducible; about 1 at the
    start."""
    schedule = instance_of(component)
    for steps, warmup in ((1, 0), (2, 1), (10, 0), (10, 3), (10, 9), (1000, 100)):
        rates = [schedule(step, steps, warmup) for step in range(warmup, steps)]
        case = f"of {steps} steps, {warmup} of them warm-up"
        for step, rate in enumerate(rates, warmup):
            assert isinstance(rate, (int, float)), f"step {step} {case}: {rate!r} is not a number"
            assert 0 <= rate < math.inf, f"step {step} {case}: {rate!r} is not a finite number ≥ 0"
        again = [schedule(step, steps, warmup) for step in range(warmup, steps)]
        assert rates == again, f"{case}: a second call gives other values"
    assert 0.5 <= schedule(0, 1000, 0) <= 1.5, (
        "without warm-up, the factor of the first step must be about 1, the peak"
    )
