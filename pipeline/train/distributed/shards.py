"""Sharded training checkpoints: under FSDP2 each rank writes its shards; any number of ranks can read them.

FSDP2 shards every tensor by rows, in the order of the ranks: a full tensor is the concatenation of its shards. Each
file holds plain tensors, which torch.load reads safely; torch.distributed.checkpoint stores its metadata as a
pickle, which could run code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard, empty

from pipeline.core.errors import CheckpointError, PipelineError, out_of_memory
from pipeline.core.files import FileEntry
from pipeline.distributed.ranks import Ranks
from pipeline.model.checkpoint import save_tensors
from pipeline.train.distributed.parallel import FSDP2
from pipeline.train.parallel import Parallel, map_named


def write_shards(
    captured: dict[str, Any], folder: Path, writers: Ranks
) -> tuple[dict[str, Any], dict[str, FileEntry]]:
    """Writes this rank's shards to `folder`/RANK.pth. All writers must call it.

    Args:
        captured: The captured state; its DTensors are on the CPU.
        folder: The folder to create; its parent exists.
        writers: The ranks, in a process group of their own.

    Returns:
        The captured state with meta tensors in place of DTensors, to write beside `folder`; and on rank 0 the size
        and sha256 of each rank's file, by its path from there.

    Raises:
        OSError: a rank cannot write, for example because the disk is full.
        PipelineError: a rank does not see the parent folder.
    """
    shards: dict[str, torch.Tensor] = {}

    def taken_out(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        shards[name] = tensor.to_local()
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    def write() -> FileEntry:
        if not folder.parent.is_dir():
            raise PipelineError(
                f"rank {writers.rank} does not see {folder.parent}: with runtime.strategy: fsdp, all machines need "
                "the project on a shared disk"
            )
        folder.mkdir(exist_ok=True)
        return save_tensors(shards, folder / _file(writers.rank), crc=False)  # the manifest has its sha256

    rest: dict[str, Any] = map_named(taken_out, captured)
    entries = writers.gather(writers.on_all_ranks(write))
    return rest, {f"{folder.name}/{_file(rank)}": entry for rank, entry in enumerate(entries)}


def _file(rank: int) -> str:
    return f"{rank:05}.pth"


def read_shards(saved: dict[str, Any], parallel: Parallel) -> dict[str, Any]:
    """Reads the content of a sharded checkpoint. All ranks must call it.

    Args:
        saved: What `write_shards` returned, with the folder of the shards as "shards".
        parallel: Decides what a rank reads: its shards under FSDP2; otherwise everything, on rank 0.

    Raises:
        CheckpointError: a rank cannot read its part.
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
        )  # torch.chunk's division of the rows
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
    """Rows first … first+count−1 of the concatenation of `parts`."""
    found = []
    for part in parts:
        found.append(part[max(first, 0) : max(first + count, 0)])
        first -= len(part)
    return torch.cat(found)
