"""A training checkpoint as shards: under FSDP2 each rank writes what it holds, and any number of ranks reads it.

FSDP2 shards every tensor by rows, in the order of the ranks, so the full tensor is what their files hold, one after
another. Each is a file of plain tensors that torch.load reads safely; torch.distributed.checkpoint notes what is
where in a pickle, which could run code and would need an unpickler of our own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard, empty

from pipeline.core.errors import CheckpointError, PipelineError, out_of_memory
from pipeline.model.checkpoint import save_tensors
from pipeline.train.distributed.parallel import FSDP2
from pipeline.train.parallel import Parallel, map_named
from pipeline.train.ranks import Ranks


def write_shards(captured: dict[str, Any], folder: Path, writers: Ranks) -> dict[str, Any]:
    """Writes this rank's shards to `folder`/RANK.pth; all writers must call it.

    Args:
        captured: The state; its DTensors are on the CPU.
        folder: Where to; its parent exists.
        writers: The processes, in a process group that nothing else uses meanwhile.

    Returns:
        The state to write beside `folder`, with a tensor without content ("meta") in the place of each DTensor.

    Raises:
        OSError: one of the ranks cannot write, such as on a full disk.
        PipelineError: a rank does not see the folder.
    """
    shards: dict[str, torch.Tensor] = {}

    def taken_out(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        shards[name] = tensor.to_local()
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    def write() -> None:
        if not folder.parent.is_dir():
            raise PipelineError(
                f"rank {writers.rank} does not see {folder.parent}, in which all ranks write: under "
                "runtime.strategy: fsdp the machines need the project on a disk that they share"
            )
        folder.mkdir(exist_ok=True)
        save_tensors(shards, folder / f"{writers.rank:05}.pth", crc=False)  # the manifest has a sha256 of it

    rest: dict[str, Any] = map_named(taken_out, captured)
    writers.on_all_ranks(write)
    return rest


def read_shards(saved: dict[str, Any], parallel: Parallel) -> dict[str, Any]:
    """A state with the content of its shards; all ranks must call it.

    Args:
        saved: What `write_shards` returned, with the shards' folder as "shards".
        parallel: Decides what a rank reads: under FSDP2 its shards, otherwise rank 0 everything.

    Raises:
        CheckpointError: a rank cannot read it.
    """
    reads = parallel.sharded or parallel.ranks.is_rank0
    return parallel.ranks.on_all_ranks(lambda: _read(saved, parallel) if reads else saved)


def _read(saved: dict[str, Any], parallel: Parallel) -> dict[str, Any]:
    folder = Path(saved["shards"])

    def filled(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in parts[0]:
            return tensor
        if not isinstance(parallel, FSDP2):
            return torch.cat([part[name] for part in parts])
        sharded = empty(tensor.shape, dtype=tensor.dtype, device_mesh=parallel.cpus, placements=[Shard(0)])
        local: torch.Tensor = sharded.to_local()
        first = parallel.ranks.rank * -(
            -len(tensor) // parallel.ranks.world_size
        )  # as torch.chunk divides the rows
        local.copy_(_rows([part[name] for part in parts], first, len(local)))
        return sharded

    try:
        parts: list[dict[str, torch.Tensor]] = [
            torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            for path in sorted(folder.glob("*.pth"))
        ]
        state: dict[str, Any] = map_named(filled, saved)
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"{folder} cannot be read ({reason})") from None
    return state


def _rows(parts: list[torch.Tensor], first: int, count: int) -> torch.Tensor:
    """`count` rows, from number `first` on, of the tensor whose rows `parts` hold one after another."""
    found = []
    for part in parts:
        found.append(part[max(first, 0) : max(first + count, 0)])
        first -= len(part)
    return torch.cat(found)
