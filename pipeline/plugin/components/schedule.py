"""Learning-rate schedules."""

from __future__ import annotations

from abc import abstractmethod

from pipeline.plugin.components.base import Component


class Schedule(Component):
    """The learning rate after warm-up, as a factor of the peak rate.

    The training loop does the warm-up: a linear increase whose last step has the peak rate. A run that is extended
    warms up again and repeats the schedule, unless the schedule is still at 1 at its last step: then the rate stays
    at the peak.
    """

    @abstractmethod
    def __call__(self, step: int, steps: int, warmup: int) -> float:
        """The factor by which the optimizer's learning rates are multiplied; 1 is the peak.

        Args:
            step: The index of the step, from 0; warmup ≤ step < steps.
            steps: The number of optimizer steps of the run.
            warmup: The number of warm-up steps.
        """

    @staticmethod
    def progress(step: int, steps: int, warmup: int, decay: float = 1.0) -> float:
        """The progress of the decay, from 0 at the peak (the last step of warm-up) to 1 at the last step.

        Args:
            step, steps, warmup: As in `__call__`.
            decay: The fraction of all steps over which the rate decays, at the end of the run; 0 before them.
        """
        peak = max(warmup - 1, 0, steps - 1 - round(decay * steps))
        return min((step - peak) / (steps - 1 - peak), 1.0) if step > peak else 0.0
