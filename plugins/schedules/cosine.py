"""The cosine schedule."""

import math
from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import Schedule, hookimpl


class Cosine(Schedule):
    """Cosine decay from the peak to `final` (Loshchilov & Hutter, 2017, without restarts)."""

    name: ClassVar[str] = "cosine"

    final: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The learning rate of the last step, relative to the peak."""

    def __call__(self, step: int, steps: int, warmup: int) -> float:
        left = (1 + math.cos(math.pi * self.progress(step, steps, warmup))) / 2
        return self.final + (1 - self.final) * left


@hookimpl
def register_schedules() -> list[type[Schedule]]:
    return [Cosine]
