"""Schedules of the learning rate."""

from __future__ import annotations

from abc import abstractmethod

from pipeline.plugin.components.base import Component


class Schedule(Component):
    """How the learning rate moves after warm-up.

    Warm-up is the loop's: a linear climb, whose last step has the peak. A run that is extended climbs once more and
    follows its schedule again; one whose schedule is still at 1 at its end stays there.
    """

    @abstractmethod
    def __call__(self, step: int, steps: int, warmup: int) -> float:
        """What the optimizer's rates are multiplied by, 1 being the peak.

        Args:
            step: The step, from 0 on; warmup ≤ step < steps.
            steps: Optimizer steps of the run.
            warmup: Steps of warm-up.
        """

    @staticmethod
    def progress(step: int, steps: int, warmup: int, decay: float = 1.0) -> float:
        """The share of the way from the peak (the last step of warm-up) to the last step, from 0 to 1.

        Args:
            step, steps, warmup: As above.
            decay: The share of all steps that the way takes, at the end; 0 before.
        """
        peak = max(warmup - 1, 0, steps - 1 - round(decay * steps))
        return min((step - peak) / (steps - 1 - peak), 1.0) if step > peak else 0.0
