"""The inverse square root schedule."""

import math
from typing import ClassVar

from pipeline.plugin import Schedule, hookimpl


class InverseSqrt(Schedule):
    """Decays with 1/√step, independently of the length of the run (Vaswani et al., 2017)."""

    name: ClassVar[str] = "inverse_sqrt"

    def __call__(self, step: int, steps: int, warmup: int) -> float:
        return math.sqrt(max(warmup, 1) / (step + 1))


@hookimpl
def register_schedules() -> list[type[Schedule]]:
    return [InverseSqrt]
