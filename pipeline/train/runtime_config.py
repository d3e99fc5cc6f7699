"""The runtime config as resolved: chosen at a run's first step, and kept when it resumes, to keep results exact."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field

from pipeline.core.errors import ParamsError
from pipeline.core.values import DEVICE
from pipeline.distributed.placement import cores_per_process, rank_device
from pipeline.distributed.ranks import Ranks
from pipeline.model.device import computes_bf16

if TYPE_CHECKING:
    from pipeline.params.params import Params

_FLOPS_WORTH_COMPILING = 5e12
"""Floating-point operations of a run from which compiling saves time (benchmarks/RESULTS.md)."""


@dataclass(frozen=True)
class RuntimeConfig:
    """What influences the last bits of a result beside the run's identity.

    It follows from params and properties of the machine, not from timings, which vary.

    Attributes:
        device: "cpu", "cuda", "cuda:1" or "mps".
        processor: The instruction set that torch uses on the CPU, or the GPU's name.
        threads: CPU threads of each process.
        processes: The number of processes.
        strategy: "ddp" or "fsdp"; "one" for a single process.
        precision: "fp32" or "bf16".
        compile: Whether model blocks and loss are compiled.
    """

    device: Annotated[str, Field(pattern=DEVICE)]
    processor: str
    threads: Annotated[int, Field(ge=1, le=1024)]
    processes: Annotated[int, Field(ge=1)]
    strategy: str
    precision: str
    compile: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for the checkpoint."""
        return asdict(self)

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """The fields that differ from an earlier config, as "threads 1 → 2"."""
        now = self.to_dict()
        return [
            f"{name} {earlier[name]} → {now[name]}"
            for name in now
            if name in earlier and _device_type(earlier[name]) != _device_type(now[name])
        ]


def _device_type(value: Any) -> Any:
    """Without the index of a device: "cuda" for "cuda:1"."""
    return value.partition(":")[0] if isinstance(value, str) else value


def resolve_runtime_config(params: Params, ranks: Ranks, earlier: Mapping[str, Any], flops: float) -> RuntimeConfig:
    """Resolves the runtime config of a run: from the params; where they say "auto" or 0, from `earlier`; else the
    best choice for this machine.

    Args:
        params: All params.
        ranks: The processes that train together.
        earlier: The runtime config that the run started with; empty for a new run.
        flops: Floating-point operations of the whole run.

    Raises:
        ParamsError: this machine lacks what `runtime` asks for.
    """
    runtime = params.runtime
    device = _device(runtime.device, ranks, earlier)
    threads = runtime.threads or earlier.get("threads") or cores_per_process(ranks)
    if runtime.compile == "auto":
        worth = flops >= _FLOPS_WORTH_COMPILING and device.type != "mps"  # torch's compiler for MPS is a prototype
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


def _device(name: str, ranks: Ranks, earlier: Mapping[str, Any]) -> torch.device:
    return rank_device("cpu" if name == "auto" and earlier.get("device") == "cpu" else name, ranks)


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return str(torch.backends.cpu.get_cpu_capability())


def _compilers() -> list[str]:
    return [os.environ.get("CXX") or "g++", "clang++", "c++"]


def _compiler_found() -> bool:
    return any(shutil.which(compiler) for compiler in _compilers())
