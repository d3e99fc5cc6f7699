"""How many processes a stage runs in, and the device and the cores of each."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from pipeline.core.errors import ParamsError
from pipeline.core.processor import cores
from pipeline.distributed.ranks import Ranks
from pipeline.model.device import choose_device

if TYPE_CHECKING:
    from pipeline.params.params import RuntimeParams


def process_count(runtime: RuntimeParams) -> int:
    """The number of processes that `runtime.processes` asks for; "auto" is one for each GPU."""
    if runtime.processes == "auto":
        return max(1, torch.cuda.device_count())
    return runtime.processes


def cores_per_process(ranks: Ranks, environment: Mapping[str, str] = os.environ) -> int:
    """The number of cores for this process: all that it may use if it is the only one or srun bound it to its
    cores; otherwise an equal share."""
    if ranks.world_size == 1:
        return cores()
    if "LOCAL_WORLD_SIZE" in environment or "SLURM_PROCID" not in environment:
        return max(1, cores() // int(environment.get("LOCAL_WORLD_SIZE", ranks.world_size)))
    asked = environment.get("SRUN_CPUS_PER_TASK") or environment.get("SLURM_CPUS_PER_TASK")
    if asked:
        return min(cores(), int(asked))
    if cores() < int(environment.get("SLURM_CPUS_ON_NODE") or 0):
        return cores()
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_NTASKS_PER_NODE") or ""
    each = [
        int(number) for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks) for _ in range(int(times or 1))
    ]  # "2(x3),1": 2 tasks on each of 3 machines, 1 on the fourth
    node = int(environment.get("SLURM_NODEID") or 0)
    return max(1, cores() // (each[min(node, len(each) - 1)] if each else ranks.world_size))


def rank_device(name: str, ranks: Ranks) -> torch.device:
    """This rank's device: `runtime.device`, and of several GPUs the rank's own.

    Raises:
        ParamsError: this machine lacks it, or it is one GPU for several processes.
    """
    device = choose_device(name)
    if device.type != "cuda" or ranks.world_size == 1:
        return device
    if device.index is not None:
        raise ParamsError(
            f"runtime.device: {name} is one GPU, but there are several processes: set it to cuda or auto"
        )
    return choose_device(f"cuda:{ranks.gpu(torch.cuda.device_count())}")
