"""The order of the training data: a pure function of (seed, epoch, index), so nothing is saved or skipped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.data.tokens import Ids


@dataclass(frozen=True)
class TrainingWindows:
    """The training tokens as windows of `context_length` tokens, in another order in each epoch.

    Attributes:
        ids: The training tokens.
        context_length: T.
        seed: Decides the order and, with `shift`, where each epoch cuts the text.
        shift: Whether each epoch starts its windows elsewhere; else they start at 0, T, 2T, …
    """

    ids: Ids
    context_length: int
    seed: int
    shift: bool

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch. Each window needs one more token, the target of its last one."""
        windows = (len(self.ids) - 1) // self.context_length
        return windows - 1 if self.shift and windows > 1 else windows

    def offsets(self, first: int, last: int) -> list[int]:
        """Offsets of the samples first … last−1 of the run; sample k is number k % per_epoch of its epoch."""
        slack = len(self.ids) - 1 - self.per_epoch * self.context_length if self.shift else 0
        places = (divmod(sample, self.per_epoch) for sample in range(first, last))
        return [
            _epoch_offsets(self.seed, epoch, self.per_epoch, self.context_length, slack)[index]
            for epoch, index in places
        ]

    def batch(self, offsets: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Inputs and targets, int64 [B, T]; the targets are the inputs shifted by one token."""
        places = np.array(offsets)[:, None] + np.arange(self.context_length + 1)
        windows = self.ids[places].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]


@lru_cache(maxsize=4)
def _epoch_offsets(seed: int, epoch: int, windows: int, context_length: int, slack: int) -> list[int]:
    """Offsets of an epoch's windows in their order; the first starts between 0 and `slack`."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    start = int(generator.integers(slack + 1))
    return [int(number) * context_length + start for number in generator.permutation(windows)]


@dataclass(frozen=True)
class EvaluationWindow:
    """A window of held-out text: inputs ids[start:end−1], targets ids[start+1:end]. The last `counted` targets
    are scored; the previous window scored the others."""

    start: int
    end: int
    counted: int


def evaluation_windows(tokens: int, context_length: int, stride: int) -> list[EvaluationWindow]:
    """Windows that score each of the `tokens` − 1 targets exactly once, the tail included.

    With `stride` = `context_length` they do not overlap; with a smaller one each target but the first
    window's has at least context_length − stride tokens before it.
    """
    windows = []
    start, scored = 0, 1
    while scored < tokens:
        end = min(start + context_length + 1, tokens)
        windows.append(EvaluationWindow(start, end, end - scored))
        scored = end
        start += stride
    return windows
