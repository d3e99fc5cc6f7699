"""The linear schedule."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import Schedule, hookimpl


class Linear(Schedule):
    """Linear decay from the peak to `final`."""

    name: ClassVar[str] = "linear"

    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The learning rate of the last step, relative to the peak."""

    def __call__(self, step: int, steps: int, warmup: int) -> float:
        return self.final + (1 - self.final) * (1 - self.progress(step, steps, warmup))


@hookimpl
def register_schedules() -> list[type[Schedule]]:
    return [Linear]
