"""A rank's part of a step: its micro-batches, read from the text and copied to the device in one piece."""

from __future__ import annotations

from collections.abc import Iterator
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


def read_step(run: TrainingRun, step: int) -> tuple[int, Iterator[MicroBatch]]:
    """Reads this rank's windows of a step: rank r takes micro-batches r, r + world_size, … of the whole batch.

    Ranks without work get a dummy micro-batch without targets: the collectives that exchange gradients must match.
    All ranks must call it.

    Returns:
        The number of targets of the step, over all ranks, and this rank's micro-batches.

    Raises:
        DataError: an id is not in the vocabulary.
    """
    ranks, size, offsets = run.parallel.ranks, run.micro_batch_size, run.offsets(step)
    every = range(0, len(offsets), size)
    own = list(every[ranks.rank :: ranks.world_size])
    starts = own + [0] * (-(-len(every) // ranks.world_size) - len(own))
    rows = [offset for start in starts for offset in offsets[start : start + size]]
    inputs, targets = run.data.batch(rows)
    targets[len(own) * size :] = IGNORED
    counts = [int(np.count_nonzero(targets[row : row + size] != IGNORED)) for row in range(0, len(rows), size)]
    (tokens,) = ranks.all_reduce_sum(sum(counts))
    # int32: half of what int64 would send
    ids = run.to_device(torch.from_numpy(np.stack((inputs, targets)).astype(np.int32)))
    first_window = run.length.windows(step)[0]

    def micro_batches() -> Iterator[MicroBatch]:
        for number, (start, counted) in enumerate(zip(starts, counts, strict=True)):
            inputs, targets = ids[:, number * size : (number + 1) * size].long()
            first, last = number == 0, number == len(starts) - 1
            yield MicroBatch(inputs, targets, counted, first_window + start, first, last)

    return int(tokens), micro_batches()
