"""What the numbers were measured on: the processor, the versions, and how fast it multiplies matrices."""

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
    """The processor and what it can do, as plain values."""
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


def versions() -> dict[str, str]:
    """Python's version and those of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def gemm_side(dtype: str, threads: int) -> Side:
    """Large matrix products: what the machine could do at the most."""
    return Side(f"{dtype} GEMM", "benchmarks.machine:gemm", {"dtype": dtype, "threads": threads}, threads)


def gemm(dtype: str, threads: int) -> tuple[Work, dict[str, Any]]:
    """Products of 2048 × 2048 matrices; the work is in floating-point operations."""
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
