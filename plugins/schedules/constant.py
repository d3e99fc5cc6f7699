"""The constant schedule."""

from typing import ClassVar

from pipeline.plugin import Schedule, hookimpl


class Constant(Schedule):
    """Keeps the peak learning rate."""

    name: ClassVar[str] = "constant"

    def __call__(self, step: int, steps: int, warmup: int) -> float:
        return 1.0


@hookimpl
def register_schedules() -> list[type[Schedule]]:
    return [Constant]
