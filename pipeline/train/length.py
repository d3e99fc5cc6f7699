"""How long a run is, and which windows of the training text each of its steps reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Length:
    """How long a run is, and which windows each of its steps reads.

    A run that was extended has a second part, which begins a step of its own.

    Attributes:
        batch_size: Windows in a step; only the last step of a part may have fewer.
        parts: The windows of each part.
    """

    batch_size: int
    parts: tuple[int, ...]

    @property
    def total_windows(self) -> int:
        return sum(self.parts)

    @property
    def total_steps(self) -> int:
        return sum(-(-windows // self.batch_size) for windows in self.parts)

    def windows(self, step: int) -> tuple[int, int]:
        """The windows that `step` reads: the first, and the one after the last; numbered over the whole run."""
        before = 0
        for windows in self.parts:
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
