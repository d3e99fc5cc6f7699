"""Several processes that run one stage: their ranks, their process group, and their collectives."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.core.console import ignore_output
from pipeline.core.errors import ParamsError, PipelineError
from pipeline.distributed.ranks import Ranks, started_as_rank
from pipeline.model.device import choose_device

T = TypeVar("T")

_TIMEOUT = timedelta(hours=1)
"""The timeout of a collective. A dead process is detected at once: its connection is closed."""
_LOST = re.compile(
    "closed by (peer|remote)|reset by peer|Broken pipe|Connection refused|recvValue failed|NCCL|Socket"
)
_SECONDS_FOR_THE_FIRST_ERROR = 5.0
TCPStore = dist.TCPStore  # type: ignore[attr-defined]
_STORE = "pipeline/store"
_STORE_TIMEOUT = timedelta(seconds=2)


@dataclass(frozen=True)
class DistributedRanks(Ranks):
    """Several processes, connected by torch.distributed. All ranks must call each of these methods.

    Attributes:
        group: The process group; None is the default group.
    """

    group: dist.ProcessGroup | None = None

    def gather(self, value: T) -> list[T]:
        values: list[Any] | None = [None] * self.world_size if self.is_rank0 else None
        dist.gather_object(value, values, group=self.group)
        return values or []

    def background(self) -> DistributedRanks:
        return replace(self, group=dist.new_group(backend="gloo", timeout=_TIMEOUT))

    def all_reduce_sum(self, *values: float) -> list[float]:
        return self._all_reduce(values, dist.ReduceOp.SUM)

    def all_reduce_max(self, value: float) -> float:
        return self._all_reduce((value,), dist.ReduceOp.MAX)[0]

    def _all_reduce(self, values: tuple[float, ...], how: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, how, group=self.group)
        reduced: list[float] = tensor.tolist()
        return reduced

    def on_rank0(self, work: Callable[[], T], to_others: Callable[[T], T] | None = None) -> T:
        result: T | None = None
        outcome: list[object] = [None, None]  # the result for the other ranks, or the error
        if self.is_rank0:
            try:
                result = work()
                outcome[0] = to_others(result) if to_others else result
            except BaseException as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, group=self.group)
        if isinstance(outcome[1], BaseException):
            raise outcome[1]
        return result if self.is_rank0 else outcome[0]  # type: ignore[return-value]

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        result, failed = None, None
        try:
            result = work()
        except Exception as error:
            failed = error
        errors: list[Exception | None] = [None] * self.world_size
        dist.all_gather_object(errors, failed, group=self.group)
        for each in errors:
            if each is not None:
                raise each
        return result  # type: ignore[return-value]


def ranks_from_environment(environment: Mapping[str, str] = os.environ) -> Ranks | None:
    """This process's ranks, from the variables of torchrun, `srun` or `pipeline train`; None without a launcher.

    Raises:
        ParamsError: the launcher's environment variables are incomplete or contradict each other.
    """
    if not started_as_rank(environment):
        return None
    try:
        if {"RANK", "WORLD_SIZE"} <= environment.keys():
            rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            local_rank = int(environment.get("LOCAL_RANK", rank))
        else:
            rank, world_size = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
            local_rank = int(environment["SLURM_LOCALID"])
    except (KeyError, ValueError) as error:
        raise ParamsError(
            f"the launcher's environment variables are incomplete ({error}): start the stage with torchrun or srun"
        ) from None
    if not 0 <= rank < world_size or local_rank < 0:
        raise ParamsError(
            f"the launcher's environment variables name rank {rank} (local rank {local_rank}) of {world_size} "
            "processes: start the stage with torchrun or srun, or unset RANK and WORLD_SIZE"
        )
    return DistributedRanks(rank, world_size, local_rank) if world_size > 1 else Ranks()


@contextmanager
def process_group(ranks: Ranks, on_gpus: bool) -> Iterator[None]:
    """Connects the processes inside the block. Only rank 0 prints there.

    Raises:
        ParamsError: there is no GPU for this rank.
        PipelineError: another rank died; that rank's error tells the cause.
    """
    if ranks.world_size == 1:
        yield
        return
    os.environ |= {"RANK": str(ranks.rank), "WORLD_SIZE": str(ranks.world_size)}
    for name, value in slurm_address(os.environ).items():  # torchrun and `pipeline train` set them
        os.environ.setdefault(name, value)
    if not ranks.is_rank0:
        ignore_output()
    try:
        if on_gpus:
            torch.cuda.set_device(choose_device(f"cuda:{ranks.gpu(torch.cuda.device_count())}"))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",  # NCCL for gradients, gloo for decisions
            store=_rendezvous_store(ranks) if "TORCHELASTIC_RUN_ID" in os.environ else None,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=_TIMEOUT,
        )
        yield
        dist.barrier()
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        time.sleep(_SECONDS_FOR_THE_FIRST_ERROR)  # let the launcher see which process died first
        raise PipelineError(f"rank {ranks.rank} lost another rank: see that rank's error") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def slurm_address(environment: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT for a Slurm step: its first host, and a port derived from job and step."""
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", environment.get("SLURM_STEP_NODELIST", ""))
    host = re.sub(r"\[(\d*)[^\]]*\]", r"\1", first[0]) if first else "localhost"  # r[0-1]n[01-04,07],gpu3: r0n01
    job, step = (
        int(re.sub(r"\D", "", environment.get(name, "")) or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")
    )
    return {"MASTER_ADDR": host, "MASTER_PORT": str(20000 + (job + 7919 * step) % 20000)}


def _rendezvous_store(ranks: Ranks) -> Any:
    """A new store, hosted by rank 0, for the rendezvous of processes that torchrun started.

    torchrun's store survives a restart with the addresses of the old processes; a rank that reads one of them waits
    forever. Rank 0's store ends with rank 0: the connection to an old one is refused, and the rank retries.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    lasting = TCPStore(host, port, timeout=_TIMEOUT)
    if ranks.is_rank0:
        fresh = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_TIMEOUT)
        lasting.set(_STORE, str(fresh.port))
        return fresh
    end = time.monotonic() + _TIMEOUT.total_seconds()
    while True:
        try:
            fresh = TCPStore(host, int(lasting.get(_STORE)), timeout=_STORE_TIMEOUT)
        except dist.DistNetworkError:
            if time.monotonic() > end:
                raise
        else:
            fresh.set_timeout(_TIMEOUT)
            return fresh
