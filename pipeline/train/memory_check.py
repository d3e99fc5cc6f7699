"""The memory check: whether a model fits its device, and what to lower if a training step ran out of memory."""

from __future__ import annotations

import torch

from pipeline.core.errors import ParamsError
from pipeline.core.files import format_bytes
from pipeline.model.architecture import Architecture
from pipeline.model.checkpoint import tensor_bytes
from pipeline.model.device import memory_of


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state, under FSDP of this rank's shards; 0 before its first step."""
    return tensor_bytes(list(optimizer.state.values()))


def memory_per_process(device: torch.device, processes: int = 1) -> int:
    """Bytes of memory for each process on its device; on a CPU, processes share the machine's memory."""
    return memory_of(device) // (processes if device.type == "cpu" else 1)


def activation_bytes(architecture: Architecture, micro_batch_size: int, precision: str) -> int:
    """An estimate of the bytes that a forward pass keeps for the backward pass, neither compiled nor recomputed.

    For each token, block and element of the width, the largest of the shipped models keeps 90 bytes in float32;
    under autocast 50, as the residual stream and the norms stay in float32. GPT-2 keeps 65 and 43, and more with
    dropout.
    """
    shape = architecture.shape
    each = 90 if precision == "fp32" else 50
    return each * micro_batch_size * shape.context_length * shape.n_layers * shape.emb_dim


def estimated_bytes(architecture: Architecture, micro_batch_size: int, precision: str) -> int:
    """An estimate of the memory of a training step that recomputes nothing: weights, gradients, an optimizer with
    two moments, and activations."""
    return 16 * architecture.parameter_count + activation_bytes(architecture, micro_batch_size, precision)


def check_fits(
    architecture: Architecture,
    device: torch.device,
    strategy: str = "ddp",
    processes: int = 1,
    micro_batch_size: int = 1,
) -> None:
    """Checks, before anything is allocated, that a model and a micro-batch can fit into memory; "fsdp" divides
    weights and gradients by the number of processes.

    Raises:
        ParamsError: the float32 weights and gradients, or the inputs of the blocks, need more memory than the
            device has.
    """
    needed = 8 * architecture.parameter_count // (processes if strategy == "fsdp" else 1)
    if needed > memory_per_process(device, processes):
        raise ParamsError(
            f"a model of {architecture.parameter_count:,} parameters needs {format_bytes(needed)} with its "
            f"gradients, but {_has(device, processes)}: lower model.n_layers or model.emb_dim"
        )
    # A lower bound: each block keeps its input, in 16 bits. `pipeline check` measures the rest.
    shape = architecture.shape
    kept = 2 * micro_batch_size * shape.context_length * shape.emb_dim * shape.n_layers
    if kept > memory_per_process(device, processes):
        raise ParamsError(
            f"train.micro_batch_size: {micro_batch_size:,} windows at once need at least {format_bytes(kept)}, but "
            f"{_has(device, processes)}: lower it"
        )


def out_of_memory_advice(
    architecture: Architecture,
    micro_batch_size: int,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    strategy: str = "ddp",
    processes: int = 1,
    recompute: bool = True,
) -> str:
    """The message for a training step that ran out of memory: what needs it, and which param to lower.
    `recompute` is true if the run recomputes activations already."""
    state = optimizer_state_bytes(optimizer)
    lasting = 8 * architecture.parameter_count // (processes if strategy == "fsdp" else 1) + state
    text = (
        f"out of memory with {micro_batch_size} windows at once: {_has(device, processes)}; weights, gradients "
        f"and optimizer need {format_bytes(lasting)}: lower "
    )
    fits, wide = lasting <= memory_per_process(device, processes), "or model.emb_dim"
    if fits and micro_batch_size > 1:
        text += f"train.micro_batch_size to {micro_batch_size // 2}, or model.context_length {wide}"
    else:
        text += f"model.{'context_length' if fits else 'n_layers'} {wide}"
        if device.type == "cuda" and strategy != "fsdp":
            text += ", or shard it over several GPUs with runtime.strategy: fsdp"
    return text if recompute or not fits else f"{text}, or set runtime.recompute: true"


def _has(device: torch.device, processes: int) -> str:
    each = f" for each of {processes} processes" if device.type == "cpu" and processes > 1 else ""
    return f"{device} has {format_bytes(memory_per_process(device, processes))}{each}"
