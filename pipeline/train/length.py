"""How long a run is, and which windows of the training text each of its steps reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Length:
    """How long a run is, and which windows each of its steps reads.

    A run that was extended has a second part, which begins a step of its own.

    Attributes:
        batch_size: Windows in a step; only the last step of a part may have fewer.
        phase_windows: The windows of each phase.
    """

    batch_size: int
    phase_windows: tuple[int, ...]

    @property
    def total_windows(self) -> int:
        return sum(self.phase_windows)

    @property
    def total_steps(self) -> int:
        return sum(-(-windows // self.batch_size) for windows in self.phase_windows)

    def windows(self, step: int) -> tuple[int, int]:
        """The windows that `step` reads: the first, and the one after the last; numbered over the whole run."""
        before = 0
        for windows in self.phase_windows:
            steps = -(-windows // self.batch_size)
            if step < steps:
                first = step * self.batch_size
                return before + first, before + min(first + self.batch_size, windows)
            step -= steps
            before += windows
        return before, before

    def windows_before(self, step: int) -> int:
        """The windows that were read when `step` begins."""
        return self.windows(step)[0]
