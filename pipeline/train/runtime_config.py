"""What a run is computed with: chosen once at its first step, and kept, since another choice would change bits."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field

from pipeline.core.errors import ParamsError
from pipeline.core.processor import cores
from pipeline.core.values import DEVICE
from pipeline.model.device import choose_device, computes_bf16
from pipeline.train.ranks import Ranks

if TYPE_CHECKING:
    from pipeline.params.params import Params, RuntimeParams

_FLOPS_WORTH_COMPILING = 5e12
"""Floating-point operations of a run from which compiling pays for itself (benchmarks/RESULTS.md)."""


@dataclass(frozen=True)
class RuntimeConfig:
    """What decides the last bits beside everything that the fingerprint holds.

    Chosen from params and facts of the machine, never from a timing, which would choose differently each time.

    Attributes:
        device: "cpu", "cuda", "cuda:1" or "mps".
        processor: The instructions that torch uses on the CPU, or the GPU's name.
        threads: Processor threads of each process.
        processes: How many train together.
        strategy: "ddp" or "fsdp", and "one" for a single process.
        precision: "fp32" or "bf16".
        compile: Whether blocks and loss are compiled.
    """

    device: Annotated[str, Field(pattern=DEVICE)]
    processor: str
    threads: Annotated[int, Field(ge=1, le=1024)]
    processes: Annotated[int, Field(ge=1)]
    strategy: str
    precision: str
    compile: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the state."""
        return asdict(self)

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """What is not as it was, in words."""
        now = self.to_dict()
        return [
            f"{name} {earlier[name]} → {now[name]}"
            for name in now
            if name in earlier and _device_type(earlier[name]) != _device_type(now[name])
        ]


def _device_type(value: Any) -> Any:
    """One GPU is like another: "cuda" for "cuda:1"."""
    return value.partition(":")[0] if isinstance(value, str) else value


def resolve_runtime_config(params: Params, ranks: Ranks, earlier: Mapping[str, Any], flops: float) -> RuntimeConfig:
    """The conditions of a run: what the params set; where they leave the choice, what they were (`earlier`, empty
    for a new run); else this machine's best.

    Args:
        params: Of the run.
        ranks: The processes that train together.
        earlier: The conditions that the run began with.
        flops: Floating-point operations of the whole run.

    Raises:
        ParamsError: this machine lacks what `runtime` asks for.
    """
    runtime = params.runtime
    device = _device(runtime.device, ranks, earlier)
    threads = runtime.threads or earlier.get("threads") or cores_per_process(ranks)
    if runtime.compile == "auto":
        worth = flops >= _FLOPS_WORTH_COMPILING and device.type != "mps"  # where torch's compiler is a prototype
        compile = bool(earlier.get("compile", worth and _compiler_found()))
    else:
        compile = runtime.compile
        if compile and not _compiler_found():
            raise ParamsError(
                f"runtime.compile: true, but there is no C++ compiler ({', '.join(_compilers())}): install one, or "
                "set it to auto"
            )
    precision = params.train.precision
    if precision == "auto":
        precision = earlier.get("precision") or ("bf16" if computes_bf16(device) else "fp32")
    return RuntimeConfig(
        device=str(device),
        processor=_processor(device),
        threads=threads,
        processes=ranks.world_size,
        strategy=runtime.strategy if ranks.world_size > 1 else "one",
        precision=precision,
        compile=compile,
    )


def process_count(runtime: RuntimeParams) -> int:
    """How many processes `runtime.processes` means on this machine; "auto" is one for each GPU."""
    if runtime.processes == "auto":
        return max(1, torch.cuda.device_count())
    return runtime.processes


def cores_per_process(ranks: Ranks, environment: Mapping[str, str] = os.environ) -> int:
    """This process's share of the cores: all that it may use where it trains alone or srun bound it to its own."""
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
    ]  # "2(x3),1": two on each of three machines, one on the fourth
    node = int(environment.get("SLURM_NODEID") or 0)
    return max(1, cores() // (each[min(node, len(each) - 1)] if each else ranks.world_size))


def _device(name: str, ranks: Ranks, earlier: Mapping[str, Any]) -> torch.device:
    if name == "auto" and earlier.get("device") == "cpu":
        name = "cpu"
    device = choose_device(name)
    if device.type != "cuda" or ranks.world_size == 1:
        return device
    if device.index is not None:
        raise ParamsError(f"runtime.device: {name} is one GPU, but several processes train: set it to cuda or auto")
    return choose_device(f"cuda:{ranks.gpu(torch.cuda.device_count())}")


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return str(torch.backends.cpu.get_cpu_capability())


def _compilers() -> list[str]:
    return [os.environ.get("CXX") or "g++", "clang++", "c++"]


def _compiler_found() -> bool:
    return any(shutil.which(compiler) for compiler in _compilers())
