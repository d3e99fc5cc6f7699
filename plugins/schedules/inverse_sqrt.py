"""The inverse square root of the step."""

import math
from typing import ClassVar

from pipeline.plugin import Schedule, hookimpl


class InverseSqrt(Schedule):
    """Falls with the square root of the step, however long the run is (Vaswani et al., 2017)."""

    name: ClassVar[str] = "inverse_sqrt"

    def __call__(self, step: int, steps: int, warmup: int) -> float:
        return math.sqrt(max(warmup, 1) / (step + 1))


@hookimpl
def register_schedules() -> list[type[Schedule]]:
    return [InverseSqrt]
