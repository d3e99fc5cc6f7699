"""The length of a run, which training windows each step reads, and how many a micro-batch has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.params.params import TrainParams


@dataclass(frozen=True)
class Length:
    """The length of a run, and which windows each step reads.

    An extended run has two phases; no step spans both.

    Attributes:
        batch_size: Windows per step; the last step of a phase may have fewer.
        phase_windows: The number of windows of each phase.
    """

    batch_size: int
    phase_windows: tuple[int, ...]

    @property
    def total_windows(self) -> int:
        return sum(self.phase_windows)

    @property
    def phase_steps(self) -> tuple[int, ...]:
        """The number of steps of each phase."""
        return tuple(-(-windows // self.batch_size) for windows in self.phase_windows)

    @property
    def total_steps(self) -> int:
        return sum(self.phase_steps)

    def windows(self, step: int) -> tuple[int, int]:
        """The range of windows that `step` reads, as (first, end); numbered over the whole run."""
        before = 0
        for windows, steps in zip(self.phase_windows, self.phase_steps, strict=True):
            if step < steps:
                first = step * self.batch_size
                return before + first, before + min(first + self.batch_size, windows)
            step -= steps
            before += windows
        return before, before

    def windows_before(self, step: int) -> int:
        """The number of windows read before `step`."""
        return self.windows(step)[0]


def rank_micro_batch_size(params: TrainParams, ranks: int) -> int:
    """Windows in a micro-batch: `micro_batch_size`, but at most a rank's share of the batch."""
    return min(params.micro_batch_size, -(-params.batch_size // ranks))
