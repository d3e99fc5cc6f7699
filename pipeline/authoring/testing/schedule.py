"""The contract of a schedule."""

from __future__ import annotations

from pipeline.authoring.testing.toy import instance_of, keeps_no_state
from pipeline.core.errors import PluginError
from pipeline.plugin.components import Schedule
from pipeline.train.schedule import multiplier


@keeps_no_state
def check_schedule(component: type[Schedule] | Schedule) -> None:
    """Checks a schedule: factors that training accepts (finite, ≥ 0) at all steps of runs of several lengths,
    reproducible."""
    schedule = instance_of(component)
    for steps, warmup in ((1, 0), (2, 1), (10, 0), (10, 3), (10, 9), (1000, 100)):
        at = multiplier(schedule, steps, warmup)
        try:
            first, again = ([at(step) for step in range(warmup, steps)] for _ in range(2))
        except PluginError as error:
            raise AssertionError(f"{error} ({warmup} steps of warm-up)") from error
        assert first == again, f"of {steps} steps, {warmup} of them warm-up: asked again, it differs"
