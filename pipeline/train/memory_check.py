"""Whether a run has room on its device, and what to lower where it has not."""

from __future__ import annotations

import torch

from pipeline.core.errors import ParamsError
from pipeline.core.files import readable
from pipeline.model.config import GPTConfig
from pipeline.model.device import memory_of
from pipeline.train.memory import Memory, estimate

_FREE = 0.1
"""Share of a device's memory that is left to its driver, to fragments, and to Python and torch themselves."""


def bytes_per_parameter(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of state that an optimizer keeps for each parameter, once it has made a step; before, 0."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    size: int = sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
    count: int = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    return size / count


def check_fits(config: GPTConfig, device: torch.device, strategy: str = "ddp", processes: int = 1) -> None:
    """Raises ParamsError when the parameters and their gradients alone need more memory than there is; what an
    optimizer adds differs from one to the next.

    It is known before the model is made, which would fill the memory first.
    """
    needed = estimate(config, 1, "fp32", 0.0, strategy=strategy, processes=processes).lasting
    memory, each = _share(device, processes)
    if needed > memory:
        raise ParamsError(
            f"a model of {config.parameter_count:,} parameters needs {readable(needed)} with its gradients, and "
            f"{device} has {readable(memory)}{each}: lower model.n_layers or model.emb_dim"
        )


def _share(device: torch.device, processes: int) -> tuple[int, str]:
    """The memory that a process has on its device, and in words for whom: on a CPU they share the machine's."""
    sharing = processes if device.type == "cpu" else 1
    return memory_of(device) // sharing, f" for each of {processes} processes" if sharing > 1 else ""


def what_to_lower(
    config: GPTConfig,
    micro_batch_size: int,
    precision: str,
    device: torch.device,
    optimizer_bytes: float = 8.0,
    strategy: str = "ddp",
    processes: int = 1,
) -> str:
    """What a person whose step ran out of memory can do, in one line; the arguments are `estimate`'s."""

    def needed(size: int) -> Memory:
        return estimate(config, size, precision, optimizer_bytes, device.type, strategy, processes)

    room, each = _share(device, processes)
    now = needed(micro_batch_size)
    parts = f"weights, gradients and optimizer {readable(now.lasting)}, activations {readable(now.activations)}"
    parts += f", gathered {readable(now.gathered)}" if now.gathered else ""
    parts += f", saving {readable(now.saving)}" if now.shared else ""
    others = ", of which something else takes a part" if now.total <= room else ""
    told = (
        f"out of memory: a step needs about {readable(now.total)} on {device} ({parts}) and there are "
        f"{readable(room)}{each}{others}: lower "
    )
    smaller = [micro_batch_size >> shift for shift in range(1, micro_batch_size.bit_length())]
    fitting = next((size for size in smaller if needed(size).total <= (1 - _FREE) * room), None)
    if fitting is not None:
        told += f"train.micro_batch_size from {micro_batch_size} ({fitting} needs about "
        told += f"{readable(needed(fitting).total)}), or model.context_length or model.emb_dim"
    elif now.lasting <= room:
        told += "model.context_length or model.emb_dim"
    else:
        told += "model.n_layers or model.emb_dim"
    if fitting is None and device.type == "cuda" and strategy == "ddp":
        told += ", or divide it over several GPUs with runtime.strategy: fsdp"
    return told
