"""The runtime config as resolved: chosen at a run's first step, and kept when it resumes, to keep results exact."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field

from pipeline.core.errors import ParamsError
from pipeline.core.values import DEVICE
from pipeline.distributed.placement import cores_per_process, rank_device
from pipeline.distributed.ranks import Ranks
from pipeline.model.architecture import Architecture
from pipeline.model.device import computes_bf16
from pipeline.train import memory_check
from pipeline.train.length import rank_micro_batch_size

if TYPE_CHECKING:
    from pipeline.params.params import Params

_FLOPS_WORTH_COMPILING = {"cpu": 5e12, "cuda": 2e16}
"""Floating-point operations of a run from which compiling saves time: on a CPU as measured (benchmarks/RESULTS.md),
on a GPU an estimate, about a minute of work. `auto` compiles nothing for MPS, where torch's compiler is new."""
_SHARE_OF_MEMORY = 0.9
"""The share of a GPU's memory that a training step may take; fragmentation needs some."""


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
        precision: "fp32", "bf16" or "fp16", which scales the loss.
        compile: "no"; "blocks", each by itself (equal ones share compiled code); or "model", as a whole. Compiled
            with a model is its loss.
        recompute: Whether the backward pass computes the activations of each block again, instead of keeping them:
            a third more work, but the memory of one block's activations instead of all.
    """

    device: Annotated[str, Field(pattern=DEVICE)]
    processor: str
    threads: Annotated[int, Field(ge=1, le=1024)]
    processes: Annotated[int, Field(ge=1)]
    strategy: str
    precision: Literal["fp32", "bf16", "fp16"]
    compile: Literal["no", "blocks", "model"]
    recompute: bool = False

    @property
    def compiled(self) -> bool:
        """Whether anything is compiled."""
        return self.compile != "no"

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """The fields that differ from an earlier config, as "threads 1 → 2"."""
        now = asdict(self)
        return [
            f"{name} {earlier[name]} → {now[name]}"
            for name in now
            if name in earlier and _device_type(earlier[name]) != _device_type(now[name])
        ]


def _device_type(value: Any) -> Any:
    """Without the index of a device: "cuda" for "cuda:1"."""
    return value.partition(":")[0] if isinstance(value, str) else value


def resolve_runtime_config(
    params: Params, ranks: Ranks, earlier: Mapping[str, Any], flops: float, architecture: Architecture | None = None
) -> RuntimeConfig:
    """Resolves the runtime config of a run: from the params; where they say "auto" or 0, from `earlier`; else the
    best choice for this machine.

    Args:
        params, ranks: All params, and the processes that train together.
        earlier: The runtime config that the run started with; empty for a new run.
        flops: Floating-point operations of the whole run.
        architecture: The model, whose size decides whether to recompute activations; None: they fit.

    Raises:
        ParamsError: this machine lacks what `runtime` asks for.
    """
    runtime = params.runtime
    on_cpu = runtime.device == "auto" and earlier.get("device") == "cpu"
    device = rank_device("cpu" if on_cpu else runtime.device, ranks)
    strategy = runtime.strategy if ranks.world_size > 1 else "one"
    precision = params.train.precision
    if precision == "auto":
        precision = earlier.get("precision") or _precision(device)
    recompute = runtime.recompute
    if recompute == "auto":
        needed = device.type == "cuda" and not _fits(params, architecture, device, ranks, precision)
        recompute = bool(earlier.get("recompute", strategy == "fsdp" or needed))
    return RuntimeConfig(
        device=str(device),
        processor=_processor(device),
        threads=runtime.threads or earlier.get("threads") or cores_per_process(ranks),
        processes=ranks.world_size,
        strategy=strategy,
        precision=precision,
        compile=_compile(runtime.compile, device, strategy, earlier, flops),
        recompute=recompute,
    )


def _precision(device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """What `auto` chooses; a CUDA GPU without bfloat16 instructions has float16 ones."""
    if computes_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def _compile(
    chosen: bool | Literal["auto", "blocks", "model"],
    device: torch.device,
    strategy: str,
    earlier: Mapping[str, Any],
    flops: float,
) -> Literal["no", "blocks", "model"]:
    """What `runtime.compile` means here. On a CPU, compiling a whole model takes minutes and gains nothing over
    blocks; FSDP works block by block."""
    best: Literal["blocks", "model"] = "model" if device.type == "cuda" and strategy != "fsdp" else "blocks"
    if chosen == "auto":
        worth = flops >= _FLOPS_WORTH_COMPILING.get(device.type, math.inf)
        kept: Literal["no", "blocks", "model"] | None = earlier.get("compile")
        return kept or (best if worth and _compiler_found() else "no")
    if chosen and not _compiler_found():
        raise ParamsError(
            f"runtime.compile: {str(chosen).lower()}, but there is no C++ compiler ({', '.join(_compilers())}): "
            "install one, or set it to auto"
        )
    if chosen == "blocks" or chosen == "model":
        return chosen if strategy != "fsdp" else "blocks"
    return best if chosen else "no"


def _fits(
    params: Params, architecture: Architecture | None, device: torch.device, ranks: Ranks, precision: str
) -> bool:
    """Whether a training step that keeps all activations fits into the device's memory."""
    if architecture is None:
        return True
    size = rank_micro_batch_size(params.train, ranks.world_size)
    needed = memory_check.estimated_bytes(architecture, size, precision)
    return needed <= _SHARE_OF_MEMORY * memory_check.memory_per_process(device, ranks.world_size)


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return str(torch.backends.cpu.get_cpu_capability())


def _compilers() -> list[str]:
    return [os.environ.get("CXX") or "g++", "clang++", "c++"]


def _compiler_found() -> bool:
    return any(shutil.which(compiler) for compiler in _compilers())
