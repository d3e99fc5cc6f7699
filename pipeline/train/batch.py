"""A rank's part of a step: its micro-batches, read from the text and copied to the device in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pipeline.plugin.components import IGNORED
from pipeline.train.run import TrainingRun


class MicroBatch(NamedTuple):
    """The windows of one forward and backward pass on one rank.

    Attributes:
        inputs, targets: Ids [B, T] on the device.
        counted: The number of its targets, without those that are only read.
        first_window: The index, within the run, of its first window; it seeds the dropout.
        first, last: Whether this is the step's first and last micro-batch on this rank.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    counted: int
    first_window: int
    first: bool
    last: bool


@dataclass(frozen=True)
class Batch:
    """The micro-batches of one step on this rank.

    Attributes:
        tokens: The number of targets of the step, over all ranks.
        ids: Inputs and targets of this rank's windows, int32 [2, B, T] on the device.
        counted: The number of targets in each micro-batch.
        first_windows: The index, within the run, of the first window of each micro-batch.
        size: Windows in each micro-batch; the last one may have fewer.
    """

    tokens: int
    ids: torch.Tensor
    counted: list[int]
    first_windows: list[int]
    size: int

    @classmethod
    def of(cls, run: TrainingRun, step: int) -> Batch:
        """Reads this rank's windows of a step: rank r takes micro-batches r, r + world_size, … of the whole batch.

        Ranks without work get a dummy micro-batch without targets: the collectives that exchange gradients must
        match. All ranks must call it.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        ranks, size, offsets = run.parallel.ranks, run.micro_batch_size, run.offsets(step)
        starts = range(0, len(offsets), size)
        rounds = -(-len(starts) // ranks.world_size)
        mine = list(starts[ranks.rank :: ranks.world_size])
        dummy = [0] * (rounds - len(mine))
        rows = [offset for start in (*mine, *dummy) for offset in offsets[start : start + size]]
        inputs, targets = run.data.batch(rows)
        if dummy:
            targets[len(mine) * size :] = IGNORED
        counted = [int(np.count_nonzero(targets[row : row + size] != IGNORED)) for row in range(0, len(rows), size)]
        (tokens,) = ranks.all_reduce_sum(sum(counted))
        ids = torch.from_numpy(np.stack((inputs, targets)).astype(np.int32))  # half of what int64 would send
        first = run.length.windows(step)[0]
        return cls(int(tokens), run.to_device(ids), counted, [first + start for start in (*mine, *dummy)], size)

    def __iter__(self) -> Iterator[MicroBatch]:
        count = len(self.counted)
        for number, (counted, first_window) in enumerate(zip(self.counted, self.first_windows, strict=True)):
            inputs, targets = self.ids[:, number * self.size : (number + 1) * self.size].long()
            yield MicroBatch(inputs, targets, counted, first_window, number == 0, number == count - 1)
