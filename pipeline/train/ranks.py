"""The processes that train one model together, as the loop sees them. Here one; several: `distributed/ranks.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pipeline.core.errors import PipelineError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process that trains alone, and what several have to do instead.

    Attributes:
        rank: This process's number, from 0.
        world_size: The number of processes.
        local_rank: This process's number on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_rank0(self) -> bool:
        """Whether this is the one that writes files, prints and calls the callbacks."""
        return self.rank == 0

    def gpu(self, visible: int, environment: Mapping[str, str] = os.environ) -> int:
        """This process's GPU among the `visible` ones. torchrun shows each process all of the machine's; Slurm may
        show it its own only (`--gpus-per-task`)."""
        return self.local_rank if "LOCAL_RANK" in environment else self.local_rank % max(visible, 1)

    def all_reduce_sum(self, *values: float) -> list[float]:
        """The sum of each value over all ranks, in float64."""
        return list(values)

    def all_reduce_max(self, value: float) -> float:
        """The largest of the ranks' values."""
        return value

    def on_rank0(self, work: Callable[[], T], to_others: Callable[[T], T] | None = None) -> T:
        """Calls `work` on rank 0 only; every rank gets its result, or raises its error. Where not all of the result
        is to be sent, the others get what `to_others` makes of it."""
        return work()

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Calls `work` on every rank; if it fails on any, all ranks raise the error of the lowest failed rank."""
        return work()

    def background(self) -> Ranks:
        """The same ranks in a separate process group, for the background saver. All ranks must call it."""
        return self

    def check_same(self, value: str, what: str) -> None:
        """Raises PipelineError on every rank if one holds another value than rank 0; `what` says of what."""
        expected = self.on_rank0(lambda: value)

        def check() -> None:
            if value != expected:
                raise PipelineError(
                    f"rank {self.rank} has {what} than rank 0: bring the same project and data to every machine"
                )

        self.on_all_ranks(check)


def started_as_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, `srun` or `pipeline train` itself started this process as one of several."""
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        return True
    return environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"  # set in what srun started, not in its batch script
