"""The warmup-stable-decay (WSD) schedule."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import Schedule, hookimpl


class WarmupStableDecay(Schedule):
    """Keeps the peak rate, then decays linearly to `final` at the end (Hu et al., 2024)."""

    name: ClassVar[str] = "wsd"

    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The learning rate of the last step, relative to the peak."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The fraction of all steps in which the rate decays."""

    def __call__(self, step: int, steps: int, warmup: int) -> float:
        return self.final + (1 - self.final) * (1 - self.progress(step, steps, warmup, self.decay))


@hookimpl
def register_schedules() -> list[type[Schedule]]:
    return [WarmupStableDecay]
