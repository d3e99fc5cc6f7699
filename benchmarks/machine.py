"""The machine: processor, versions, and the speed of matrix products."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measure import Side, Work
from pipeline.core.processor import cores

_PACKAGES = ("torch", "transformers", "tiktoken", "tokenizers", "numpy", "safetensors", "dvc", "lightning")


def machine() -> dict[str, Any]:
    """Facts about the processor, as plain values."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "instructions": [flag for flag in wanted if flag in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor_kind(facts: dict[str, Any]) -> str:
    """The most capable instructions of a processor, such as "amx_bf16": speeds are compared between equal kinds."""
    return facts["instructions"][-1] if facts["instructions"] else "other"


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that affect the results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def gemm_side(dtype: str, threads: int) -> Side:
    """A side with large matrix products: the maximum rate of the machine."""
    return Side(f"{dtype} GEMM", "benchmarks.machine:gemm", {"dtype": dtype, "threads": threads}, threads)


def gemm(dtype: str, threads: int) -> tuple[Work, dict[str, Any]]:
    """Multiplies 2048 × 2048 matrices; the work is in floating-point operations."""
    import torch

    torch.set_num_threads(threads)
    size, times = 2048, 20 if dtype == "bf16" else 6
    a, b = (torch.randn(size, size).to(torch.bfloat16 if dtype == "bf16" else torch.float32) for _ in range(2))
    torch.mm(a, b)

    def work() -> float:
        for _ in range(times):
            torch.mm(a, b)
        return float(times * 2 * size**3)

    return work, {}
