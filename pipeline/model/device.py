"""Which device computes, and whether a model fits on it."""

from __future__ import annotations

import os

import torch

from pipeline.errors import ParamsError
from pipeline.model.config import GPTConfig

_COPIES = 4
"""Of the parameters in float32, at the least: weights, gradients, and the two moments of Adam."""


def choose_device(name: str) -> torch.device:
    """`runtime.device` as a torch device; "auto" takes a GPU where there is one.

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


def use_threads(threads: int) -> None:
    """Lets torch compute on `threads` processor threads; 0 means one for each core."""
    torch.set_num_threads(threads or os.cpu_count() or 1)


def memory_of(device: torch.device) -> int:
    """Bytes that the device has: a GPU's own, else the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(config: GPTConfig, device: torch.device) -> None:
    """Raises ParamsError when the parameters and their optimizer alone need more memory than there is.

    It is known before the model is made, which would fill the memory first.
    """
    needed, memory = 4 * _COPIES * config.parameter_count, memory_of(device)
    if needed > memory:
        raise ParamsError(
            f"a model of {config.parameter_count:,} parameters needs {gigabytes(needed)} with its gradients and "
            f"optimizer, and {device} has {gigabytes(memory)}: lower model.n_layers or model.emb_dim"
        )


def gigabytes(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
