"""The processes that run one stage together, and how they open the splits. Here a single process; several are in
`process_group.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.core.errors import PipelineError
from pipeline.data.tokens import TokenFolder

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """A single process, and the base class for several.

    Attributes:
        rank: The index of this process.
        world_size: The number of processes.
        local_rank: The index of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes files, prints and calls the callbacks."""
        return self.rank == 0

    def gpu(self, visible: int, environment: Mapping[str, str] = os.environ) -> int:
        """The index of this process's GPU among the `visible` ones. torchrun shows each process all GPUs of the
        machine; Slurm may show only one (`--gpus-per-task`)."""
        return self.local_rank if "LOCAL_RANK" in environment else self.local_rank % max(visible, 1)

    def all_reduce_sum(self, *values: float) -> list[float]:
        """The sum of each value over all ranks, in float64."""
        return list(values)

    def all_reduce_max(self, value: float) -> float:
        """The maximum of `value` over all ranks."""
        return value

    def on_rank0(self, work: Callable[[], T], to_others: Callable[[T], T] | None = None) -> T:
        """Calls `work` on rank 0 only; every rank returns its result or raises its error. With `to_others`, the
        other ranks get `to_others(result)`, for example without large tensors."""
        return work()

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Calls `work` on every rank; if it fails on any, all ranks raise the error of the lowest failed rank."""
        return work()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in their order, on rank 0; an empty list on the others. Values are pickled."""
        return [value]

    def background(self) -> Ranks:
        """The same ranks in a separate process group, for the background saver. All ranks must call it."""
        return self

    def check_same(self, value: str, what: str) -> None:
        """Raises PipelineError on every rank if a rank's value differs from rank 0's; `what` names the
        difference."""
        expected = self.on_rank0(lambda: value)

        def check() -> None:
            if value != expected:
                raise PipelineError(
                    f"rank {self.rank} has {what} than rank 0: copy the same project and data to every machine"
                )

        self.on_all_ranks(check)


def started_as_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, `srun` or `pipeline train` started this process as one of several ranks."""
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        return True
    return environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"  # srun sets it, sbatch does not


def open_splits(folder: Path, ranks: Ranks) -> TokenFolder:
    """Opens the splits; only the first of several ranks checks the files' hashes. All ranks must call it.

    Raises:
        DataError: a file is missing or corrupt.
    """
    fix = "run `python -m pipeline split`"
    if ranks.world_size > 1:
        ranks.on_rank0(lambda: TokenFolder(folder, fix).names)
    return TokenFolder(folder, fix, hashes=ranks.world_size == 1)
