"""The device: its choice, threads, memory and bfloat16 support."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any

import torch

from pipeline.core import processor
from pipeline.core.errors import ParamsError
from pipeline.model import waiting

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device(name: str) -> torch.device:
    """`runtime.device` as a torch device; "auto" takes a GPU if there is one.

    Raises:
        ParamsError: this machine, or this build of torch, has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ParamsError(f"runtime.device: {name}, but torch {torch.__version__} sees no CUDA GPU: set it to auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ParamsError(f"runtime.device: {name}, but there are {torch.cuda.device_count()} GPUs, from cuda:0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ParamsError("runtime.device: mps, but this machine has no Apple GPU: set it to auto")
    return device


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of a model's parameters."""
    return next(model.parameters()).device


def use_threads(threads: int) -> None:
    """Sets torch's number of threads; 0 means one per core. Several threads spin only while the machine is idle."""
    torch.set_num_threads(threads or processor.cores())
    if torch.get_num_threads() > 1:
        waiting.watch()


def keep_memory() -> None:
    """Makes glibc keep freed memory: each step allocates the same large blocks, and page faults on returned blocks
    can take half of its time."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, -1)


def computes_bf16(device: torch.device) -> bool:
    """Whether `auto` chooses bfloat16: a CPU or CUDA GPU needs instructions for it (otherwise it is far slower than
    float32); an Apple GPU must pass `autocasts_bf16`."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return autocasts_bf16(device)
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


def autocasts_bf16(device: torch.device) -> bool:
    """Whether a matrix product under bfloat16 autocast and its gradient are correct on a device. The probe draws no
    random numbers.
    """
    try:
        weight = torch.ones(8, 8, device=device, requires_grad=True)
        with torch.autocast(device.type, torch.bfloat16):
            product = torch.ones(8, 8, device=device) @ weight
        (gradient,) = torch.autograd.grad(product.float().sum(), weight)
    except (RuntimeError, TypeError):
        return False
    return product.dtype == torch.bfloat16 and all(bool((each == 8).all()) for each in (product, gradient))


def float64_device(device: torch.device) -> torch.device:
    """The device for sums in float64: the CPU for an Apple GPU, which has no float64; otherwise `device`."""
    return torch.device("cpu") if device.type == "mps" else device


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory(device: torch.device) -> int:
    """The peak memory so far in bytes: allocated on a GPU, or resident in this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else processor.peak_memory()
