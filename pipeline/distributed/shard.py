"""A model whose parameters are sharded over the ranks, to use it; training has its own, in `train/distributed/`."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pipeline.distributed.ranks import Ranks
from pipeline.model.architecture import LanguageModel, units
from pipeline.model.checkpoint import model_of


def shard(model: LanguageModel, device: torch.device, ranks: Ranks) -> LanguageModel:
    """A copy of a model on the CPU with its parameters sharded over the ranks (FSDP2), for forward passes.

    Each rank copies only its rows; a block's full parameters exist while it computes. All ranks must call it.
    """
    sharded = model_of(model.architecture, model.state_dict())
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    for module in dict.fromkeys([*units(sharded), sharded]):
        fully_shard(module, mesh=mesh)
    return sharded.eval()
