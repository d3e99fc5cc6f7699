"""Where the targets of evaluation windows are: in the text, and in the context of their window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.data.batches import EvaluationWindow
from pipeline.data.joined import check_ids
from pipeline.data.masked import MaskedIds

Offsets = np.ndarray[tuple[int], np.dtype[np.int64]]
_AT_ONCE = 1 << 20


class Places(NamedTuple):
    """The places of N targets.

    Attributes:
        offsets: Their indices in the text [N].
        positions: The position in its window from which each is predicted [N], from 0.
    """

    offsets: Offsets
    positions: Offsets

    @classmethod
    def of(cls, ids: MaskedIds, windows: Sequence[EvaluationWindow]) -> Places:
        """The places of the windows' targets, in the order in which `score` yields them."""
        offsets = [
            window.end - window.counted + np.flatnonzero(ids.learnt(window.end - window.counted, window.end))
            for window in windows
        ]
        starts = np.repeat([window.start for window in windows], [len(each) for each in offsets])
        joined = np.concatenate([np.zeros(0, np.int64), *offsets])
        return cls(joined, joined - 1 - starts)


def target_sums(ids: MaskedIds, values: np.ndarray) -> tuple[int, int]:
    """The number of targets of a text (its learnt tokens, but not the first token), and the sum of their values.

    The text is read in chunks. `values` has a value for each id [V].

    Raises:
        DataError: an id is not in the vocabulary.
    """
    count = total = 0
    for start in range(1, len(ids), _AT_ONCE):
        end = min(start + _AT_ONCE, len(ids))
        chunk, learnt = ids.ids[start:end], ids.learnt(start, end)
        check_ids(chunk, len(values), "the text to score", "run `python -m pipeline split`")
        count += int(learnt.sum())
        total += int(values[chunk[learnt]].sum())
    return count, total
