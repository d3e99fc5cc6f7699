"""The processes that train one model together: which one this is, and what they tell each other."""

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

T = TypeVar("T")

_PATIENCE = timedelta(hours=1)
"""How long a process waits for the others; one that died is noticed at once, by its closed connection."""
_LOST = re.compile(
    "closed by (peer|remote)|reset by peer|Broken pipe|Connection refused|recvValue failed|NCCL|Socket"
)
_SECONDS_FOR_THE_FIRST_ERROR = 5.0
_SECONDS_FOR_A_STORE = timedelta(seconds=2)
_STORE = "pipeline/store"
_TCPStore = dist.TCPStore  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, numbered from 0; alone, each of these methods does nothing.

    Attributes:
        rank: This one's number.
        count: How many there are.
        local: This one's number on its machine, which is also its GPU's.
        group: The connections that they talk over; None is the training's own.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files, prints and calls the callbacks."""
        return self.rank == 0

    def beside(self) -> Ranks:
        """The same processes over connections of their own, for a thread beside the training, whose messages must
        not mix with the training's; all must call it."""
        if self.count == 1:
            return self
        return replace(self, group=dist.new_group(backend="gloo", timeout=_PATIENCE))

    def total(self, *values: float) -> list[float]:
        """The sums of each value over all ranks, in float64."""
        return self._reduced(values, dist.ReduceOp.SUM) if self.count > 1 else list(values)

    def largest(self, value: float) -> float:
        """The largest of the ranks' values."""
        return self._reduced([value], dist.ReduceOp.MAX)[0] if self.count > 1 else value

    def _reduced(self, values: tuple[float, ...] | list[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, how, group=self.group)
        found: list[float] = tensor.tolist()
        return found

    def from_first(self, work: Callable[[], T], told: Callable[[T], T] = lambda result: result) -> T:
        """Does `work` on the first rank; every rank gets its result (the others what `told` makes of it, where not
        all of it should be sent), or raises its error."""
        if self.count == 1:
            return work()
        result: T | None = None
        message: list[object] = [None, None]
        if self.first:
            try:
                result = work()
                message[0] = told(result)
            except BaseException as error:
                message[1] = error
                dist.broadcast_object_list(message, group=self.group)
                raise
        dist.broadcast_object_list(message, group=self.group)
        if isinstance(message[1], BaseException):
            raise message[1]
        return result if self.first else message[0]  # type: ignore[return-value]

    def each(self, work: Callable[[], T]) -> T:
        """Does `work` on every rank; where it fails on any, all raise the error of the first that it failed on."""
        if self.count == 1:
            return work()
        errors: list[Exception | None] = [None] * self.count
        done, failed = None, None
        try:
            done = work()
        except Exception as error:
            failed = error
        dist.all_gather_object(errors, failed, group=self.group)
        for each in errors:
            if each is not None:
                raise each
        return done  # type: ignore[return-value]

    def same(self, value: str, what: str) -> None:
        """Raises PipelineError on every rank where they do not hold the same value."""
        if self.count == 1:
            return
        values: list[str | None] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        others = [rank for rank, each in enumerate(values) if each != values[0]]
        if others:
            raise PipelineError(
                f"rank {others[0]} has {what} than rank 0: bring the same project and data to every machine"
            )


def ranks_here(environment: Mapping[str, str] = os.environ) -> Ranks | None:
    """This process's place among those that torchrun, `srun` or `pipeline train` itself started; None for none.

    torch reads the address of the first rank from MASTER_ADDR and MASTER_PORT; torchrun sets them, and for srun
    they are set here, from Slurm's own variables.
    """
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            local = environment.get("LOCAL_RANK", environment["RANK"])
            return Ranks(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(local))
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # only in what srun started, not in its script
            return Ranks(
                int(environment["SLURM_PROCID"]),
                int(environment["SLURM_STEP_NUM_TASKS"]),
                int(environment["SLURM_LOCALID"]),
            )
    except (KeyError, ValueError) as error:
        raise ParamsError(
            f"the launcher's environment variables are incomplete ({error}): start with torchrun or srun"
        ) from None
    return None


def slurm_address(environment: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT for a Slurm step: its first host, and a port that follows from the job's."""
    hosts = environment.get("SLURM_STEP_NODELIST", "localhost")
    first = re.match(r"([^\[,]+)(?:\[(\d+))?", hosts)  # node[01-04,07],gpu3
    host = "".join(part for part in (first.groups() if first else ("localhost",)) if part)
    job = int(re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "")) or 0)
    return {"MASTER_ADDR": host, "MASTER_PORT": str(20000 + job % 20000)}


def _fresh_store(ranks: Ranks) -> Any:
    """Where the processes that torchrun started find each other: at a store of the first of them.

    torchrun's own store outlives a restart, with the addresses of the processes before it, and who reads one of
    those waits for the dead. The first process's store ends with it: who finds the former one's address there is
    refused, and looks again.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    lasting = _TCPStore(host, port, timeout=_PATIENCE)
    if ranks.first:
        own = _TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
        lasting.set(_STORE, str(own.port))
        return own
    end = time.monotonic() + _PATIENCE.total_seconds()
    while True:
        try:
            own = _TCPStore(host, int(lasting.get(_STORE)), timeout=_SECONDS_FOR_A_STORE)
        except dist.DistNetworkError:
            if time.monotonic() > end:
                raise
        else:
            own.set_timeout(_PATIENCE)
            return own


@contextmanager
def joined(ranks: Ranks, on_gpus: bool) -> Iterator[None]:
    """Connects the processes inside the block; only the first prints.

    Raises:
        PipelineError: another process died; its own error is the one to read.
    """
    if ranks.count == 1:
        yield
        return
    os.environ |= {"RANK": str(ranks.rank), "WORLD_SIZE": str(ranks.count)}
    for name, value in slurm_address(os.environ).items():
        os.environ.setdefault(name, value)
    if not ranks.first:
        ignore_output()
    try:
        if on_gpus:
            torch.cuda.set_device(ranks.local)
        # Numbers that decide the way are exchanged on the CPU, gradients where they are.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
            store=_fresh_store(ranks) if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else None,
            rank=ranks.rank,
            world_size=ranks.count,
            timeout=_PATIENCE,
        )
        yield
        dist.barrier()
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        time.sleep(_SECONDS_FOR_THE_FIRST_ERROR)  # the launcher ends this process, having seen which died first
        raise PipelineError(f"rank {ranks.rank} lost another rank, whose own error tells why") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
