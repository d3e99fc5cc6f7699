"""A model that several ranks train: replicated on each (DDP), or a shard on each (FSDP2).

torch.distributed.checkpoint.state_dict also gathers and distributes state dicts, but does not fit: on a CPU its
"offloaded" weights alias the live ones, which training changes while they are written; it takes an optimizer step
to initialise a state, so that AdamW's first step counts as its second; and it renames the optimizer's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.distributed.ranks import Ranks
from pipeline.model.architecture import LanguageModel, units
from pipeline.model.checkpoint import model_of
from pipeline.plugin.components import ModelOutput
from pipeline.train.memory_check import memory_per_process
from pipeline.train.parallel import Parallel, map_named, map_tensors, prepared, wrap_forward
from pipeline.train.runtime_config import RuntimeConfig


class _Distributed(Parallel):
    """The common base of DDP and FSDP2: collectives distribute rank 0's tensors."""

    def full(self, state: Any) -> Any:
        def copied(tensor: torch.Tensor) -> torch.Tensor:
            tensor = self.full_tensor(tensor)
            return tensor.detach().to("cpu", copy=True) if self.ranks.is_rank0 else tensor.to("meta")

        return map_tensors(copied, state)

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        mine = self.model.state_dict()
        self.model.load_state_dict({name: self._distribute(like, weights.get(name)) for name, like in mine.items()})

    def load_optimizer(self, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def placed(like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
            tensor = self._distribute(like, tensor)
            return tensor if tensor.ndim else tensor.cpu()  # AdamW reads its count of steps: never from a GPU

        state = {
            number: map_tensors(partial(placed, parameters[number]), values)
            for number, values in saved["state"].items()
        }
        optimizer.load_state_dict({**saved, "state": state})

    def place_nested(self, saved: Any) -> Any:
        mine = self.model.state_dict()
        first = next(iter(mine.values()))  # any shard has the device mesh

        def placed(name: str, tensor: torch.Tensor) -> torch.Tensor:
            unnamed = first if isinstance(tensor, DTensor) else tensor
            return self._distribute(mine.get(name.rpartition("/")[2], unnamed), tensor)

        return map_named(placed, saved)

    def _distribute(self, like: torch.Tensor, tensor: torch.Tensor | None) -> torch.Tensor:
        """Broadcasts rank 0's tensor, or shards it like `like` if it has the same shape; the other ranks pass None
        or a meta tensor. A sharded tensor is only moved to `like`'s device."""
        if isinstance(tensor, DTensor):
            assert isinstance(like, DTensor)
            return _shard_on(like.device_mesh, tensor)
        if tensor is None or tensor.is_meta:
            form = like if tensor is None else tensor
            tensor = torch.empty(form.shape, dtype=form.dtype, device=self.device)
        tensor = tensor.to(self.device)
        if isinstance(like, DTensor) and tensor.shape == like.shape:
            return distribute_tensor(tensor, like.device_mesh, like.placements)
        dist.broadcast(tensor, 0)
        return tensor


# ── DDP ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class DDP(_Distributed):
    """The full model on every rank.

    Attributes:
        wrapped: The model in torch's DistributedDataParallel.
    """

    wrapped: DistributedDataParallel

    def call_model(self, ids: torch.Tensor) -> Any:
        return self.wrapped(ids)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.wrapped.no_sync()  # exchange gradients in the last one only

    def full_model(self) -> LanguageModel | None:
        return self.model if self.ranks.is_rank0 else None


def ddp(make: Callable[[], LanguageModel], ranks: Ranks, config: RuntimeConfig) -> DDP:
    """Builds the full model on every rank; for the arguments see `parallelize`."""
    model = prepared(make, config)
    # Not with static_graph: in the first step it exchanges gradients in the first micro-batch, despite no_sync.
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, _sum)
    return DDP(model=model, ranks=ranks, compiled=config.compiled, wrapped=wrapped)


def _sum(state, bucket):  # type: ignore[no-untyped-def]  # torch rejects postponed annotations here
    """A communication hook that sums gradients. DDP's own hooks take the mean; a loss scaled by the number of ranks
    would make up for it exactly only for powers of two."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    future: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


# ── FSDP2 ─────────────────────────────────────────────────────────────────────────────────────────


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True, kw_only=True)
class FSDP2(_Distributed):
    """A shard of every parameter on each rank. In bf16 and fp16, a block's full parameters have 16 bits; shards,
    their gradients and the sums of these over the ranks have 32.

    Attributes:
        cpus: The device mesh of CPUs, for copies of the shards.
        sharded_copy: Builds another model with shards like this one's, without values, which computes in float32.
        wide: Whether the full parameters have the dtype of the shards.
        reduce_once: Whether gradients are reduced in a step's last micro-batch only, and full on every rank until
            then (see `_reduce_once`).
    """

    cpus: DeviceMesh
    sharded_copy: Callable[[], LanguageModel]
    wide: bool
    reduce_once: bool
    sharded: ClassVar[bool] = True

    def call_model(self, ids: torch.Tensor) -> Any:
        output = self.model(ids)
        # FSDP2 registers a backward hook on every output tensor, in each call. The head's weight outlives the call:
        # it would collect hooks and get slow. The hook on the hidden states is enough.
        hooks = isinstance(output, ModelOutput) and output.head_weight._backward_hooks
        if hooks:
            hooks.clear()
        return output

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        self.model.set_requires_gradient_sync(last or not self.reduce_once)  # type: ignore[operator]
        return nullcontext()

    def model_to_score(self) -> LanguageModel:
        if self.wide:
            return self.model
        model = self.sharded_copy()
        model.load_state_dict(self.model.state_dict())
        for name, buffer in _unsaved_buffers(model):
            buffer.copy_(self.model.get_buffer(name))
        return model

    def full_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def to_cpu(self, state: Any) -> Any:
        def copied(tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor.detach()
            return _shard_on(self.cpus, tensor) if isinstance(tensor, DTensor) else tensor.to("cpu", copy=True)

        return map_tensors(copied, state)

    def distribute(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mine = self.model.state_dict()
        return {name: self.to_cpu(self._distribute(mine[name], tensor)) for name, tensor in weights.items()}

    def full_model(self) -> LanguageModel | None:
        weights = self.full(self.model.state_dict())
        if not self.ranks.is_rank0:
            return None
        return model_of(self.model.architecture, weights).train(self.model.training)


def fsdp2(make: Callable[[], LanguageModel], ranks: Ranks, config: RuntimeConfig) -> FSDP2:
    """Builds a shard of the model on every rank; no device ever holds the full model. For the arguments see
    `parallelize`; "model" compiles block by block, too: FSDP2's hooks between blocks are no part of a graph."""
    device, dtype = torch.device(config.device), _DTYPES.get(config.precision)
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    # Autocast casts what enters an operation; FSDP2 would also round what enters a block, such as angles.
    policy = MixedPrecisionPolicy(dtype, torch.float32 if dtype else None, cast_forward_inputs=False)
    model = _sharded(make, device, mesh, policy, config.compiled, config.recompute)
    parallel = FSDP2(
        model=model,
        ranks=ranks,
        writers=ranks.background(),
        compiled=config.compiled,
        cpus=init_device_mesh("cpu", (ranks.world_size,)),
        sharded_copy=partial(_sharded, make, device, mesh, MixedPrecisionPolicy()),
        wide=dtype is None,
        reduce_once=_reduce_once(model, device, ranks),
    )
    full = make() if ranks.is_rank0 else None  # the same initial weights as in one process
    parallel.load_weights(full.state_dict() if full else {})
    for name, buffer in _unsaved_buffers(model):
        dist.broadcast(buffer.copy_(full.get_buffer(name)) if full else buffer, 0)
    return parallel


def _sharded(
    make: Callable[[], LanguageModel],
    device: torch.device,
    mesh: DeviceMesh,
    policy: MixedPrecisionPolicy,
    compiled: bool = False,
    recompute: bool = False,
) -> LanguageModel:
    """A model of which each rank has a shard, without values."""
    with torch.device("meta"):
        model = make()
    for unit in units(model):
        wrap_forward(unit, compiled, recompute and unit is not model)
    for module in dict.fromkeys([*units(model), model]):
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    model.to_empty(device=device)
    return model


def _unsaved_buffers(model: LanguageModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers that are not in the state dict, by name."""
    saved = model.state_dict()
    return ((name, buffer) for name, buffer in model.named_buffers() if name not in saved)


def _reduce_once(model: LanguageModel, device: torch.device, ranks: Ranks) -> bool:
    """Whether every rank has memory for the float32 gradients of the full model: with its shards of weights,
    gradients and two moments, they may take half of it. The rest is for activations."""
    count = sum(parameter.numel() for parameter in model.parameters())
    needed = 4 * count + 16 * count // ranks.world_size
    return not ranks.all_reduce_max(needed > _SHARE_OF_MEMORY * memory_per_process(device, ranks.world_size))


def _shard_on(mesh: DeviceMesh, tensor: DTensor) -> DTensor:
    """Copies a DTensor to another mesh of the same ranks, such as the CPUs."""
    local = tensor.to_local().to(mesh.device_type, copy=True)
    return DTensor.from_local(
        local, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
