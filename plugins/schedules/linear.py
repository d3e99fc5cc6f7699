"""A linear decay."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import Schedule, hookimpl


class Linear(Schedule):
    """Falls in equal parts from the peak to `final`."""

    name: ClassVar[str] = "linear"

    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The last step's rate as a share of the peak."""

    def __call__(self, step: int, steps: int, warmup: int) -> float:
        return self.final + (1 - self.final) * (1 - self.progress(step, steps, warmup))


@hookimpl
def register_schedules() -> list[type[Schedule]]:
    return [Linear]
