"""How a model lies on the processes that train it: whole on each (DDP), or a share on each (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipeline.model.gpt import GPT
from pipeline.plugin.components import ModelOutput
from pipeline.train.distributed.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Parallel:
    """A model as the ranks train it together.

    Gradients are summed over the ranks, never averaged: the loop divides by the targets of the whole batch, so
    that ranks with fewer targets weigh less.

    Attributes:
        ranks: The processes.
        model: The model; under FSDP2 its parameters are DTensors, of which each rank holds a share.
        forward: What training calls: ids [B, T] → ModelOutput; its backward sums gradients over the ranks.
        compiled: Whether the blocks are compiled.
        cpus: Under FSDP2, the CPUs that keep copies of the shares; None otherwise.
        writers: The processes that write a state together: under FSDP2 all, each its share, beside the training;
            otherwise each alone, and only the first has something to write.
    """

    ranks: Ranks
    model: GPT
    forward: Callable[[torch.Tensor], ModelOutput]
    compiled: bool = False
    cpus: DeviceMesh | None = None
    writers: Ranks = field(default_factory=Ranks)

    @property
    def sharded(self) -> bool:
        """Whether it is FSDP2."""
        return self.cpus is not None

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around a micro-batch's forward and backward: DDP exchanges gradients in the last one only. FSDP2 does in
        each, since a rank has no room for the gradients of the whole model."""
        if isinstance(self.forward, DistributedDataParallel) and not last:
            with self.forward.no_sync():
                yield
        else:
            yield

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Inside, compiled blocks run as they are written: evaluation has many shapes, and each would compile."""
        if not self.compiled:
            yield
            return
        with torch.compiler.set_stance("force_eager"):
            yield

    def clip(self, largest: float) -> float:
        """Scales the gradients down to a norm of at most `largest`; returns the norm that they had."""
        parameters = list(self.model.parameters())
        total = torch.nn.utils.get_total_norm(
            [each.grad for each in parameters if each.grad is not None], error_if_nonfinite=False
        )
        norm = float(_full(total).item())
        if norm > largest:  # else it would multiply every gradient by one
            torch.nn.utils.clip_grads_with_norm_(parameters, largest, total)
        return norm

    def whole(self, value: Any) -> Any:
        """A copy of a state dict whose tensors are whole, on the first rank's CPU; the others get the same with
        tensors of no content ("meta"). All ranks must call it."""
        if isinstance(value, torch.Tensor):
            tensor = _full(value).detach()
            return tensor.to("cpu", copy=True) if self.ranks.first else tensor.to("meta")
        return mapped(self.whole, value)

    def kept(self, value: Any) -> Any:
        """A copy of a state dict on the CPU: `whole`, or under FSDP2 this rank's shares, so that no rank ever holds
        all. All ranks must call it."""
        if self.cpus is None:
            return self.whole(value)
        if isinstance(value, torch.Tensor):
            return _share(value.detach(), self.cpus) if _is_shared(value) else value.detach().to("cpu", copy=True)
        return mapped(self.kept, value)

    def kept_weights(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights that were loaded, whole on the first rank or as shares, in the form that `kept` gives them."""
        if self.cpus is None:
            return weights
        own = self.model.state_dict()
        return {name: self.kept(self._dealt(tensor, own[name])) for name, tensor in weights.items()}

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Loads weights: shares, or whole ones of which the first rank has the content; all ranks must call it."""
        own = self.model.state_dict()
        self.model.load_state_dict({name: self._dealt(weights.get(name), own[name]) for name in own})

    def load_optimizer(self, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        """Loads an optimizer's state: shares, or whole tensors of which the first rank has the content; all ranks
        must call it."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {
            number: {
                name: self._dealt(value, parameters[number]) if isinstance(value, torch.Tensor) else value
                for name, value in values.items()
            }
            for number, values in saved["state"].items()
        }
        optimizer.load_state_dict({**saved, "state": state})

    def _dealt(self, value: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
        """A tensor of the first rank on this rank: the whole of it, or, where the parameter that it belongs to is
        shared out and has its shape, this rank's share; that may be what it is already."""
        if self.ranks.count == 1:
            assert value is not None
            return value
        if value is not None and _is_shared(value):
            return _share(value, parameter.device_mesh)  # type: ignore[attr-defined]
        if value is None or value.is_meta:
            like = parameter if value is None else value
            value = torch.empty(like.shape, dtype=like.dtype, device=self.device)
        value = value.to(self.device)
        if self.sharded and value.shape == parameter.shape:
            from torch.distributed.tensor import DTensor, distribute_tensor

            assert isinstance(parameter, DTensor)
            return distribute_tensor(value, parameter.device_mesh, parameter.placements)
        dist.broadcast(value, 0)
        return value

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.model.head_weight.device

    def whole_model(self) -> GPT | None:
        """The whole model to look at and generate with, on the first rank, and None on the others. Under FSDP2 it
        is a copy on the CPU, and all ranks must call it."""
        if not self.sharded:
            return self.model if self.ranks.first else None
        weights = self.whole(self.model.state_dict())
        if not self.ranks.first:
            return None
        with torch.device("meta"):
            model = GPT(self.model.config)
        model.load_state_dict(weights, assign=True)
        return model.train(self.model.training)


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """A copy of a dict, list or tuple with each of its values changed; anything else as it is."""
    if isinstance(value, dict):
        return {key: change(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(change(each) for each in value)
    return value


def _is_shared(tensor: torch.Tensor) -> bool:
    """Whether each rank has a share of it."""
    # By its method, since importing DTensor takes half a second, which a run in one process need not spend.
    return hasattr(tensor, "full_tensor")


def _full(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or the whole of one of which each rank has a share."""
    whole: torch.Tensor = tensor.full_tensor() if _is_shared(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def _share(tensor: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """A copy of this rank's share of a tensor on other devices of the same ranks."""
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    local = tensor.to_local().to(mesh.device_type, copy=True)
    return DTensor.from_local(
        local, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def spread(make: Callable[[], GPT], device: torch.device, ranks: Ranks, strategy: str, compiled: bool) -> Parallel:
    """Makes a model and lays it out over the ranks.

    Args:
        make: Makes the whole model, the same on every rank.
        device: Where this rank computes.
        ranks: The processes, connected.
        strategy: "ddp" or "fsdp"; alone, a process needs neither.
        compiled: Whether each block is compiled.
    """
    sharded = strategy == "fsdp" and ranks.count > 1
    model = _sharded(make, device, ranks) if sharded else make().to(device)
    if compiled:
        model.compile_parts()
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh

        cpus = init_device_mesh("cpu", (ranks.count,))
        parallel = Parallel(ranks, model, _without_old_hooks(model), compiled, cpus, ranks.beside())
        # The first rank makes the weights as one process does, and deals them out.
        parallel.load_weights(make().state_dict() if ranks.first else {})
        return parallel
    if ranks.count == 1:
        return Parallel(ranks, model, model, compiled=compiled)
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, _sum)
    return Parallel(ranks, model, wrapped, compiled=compiled)


def _sharded(make: Callable[[], GPT], device: torch.device, ranks: Ranks) -> GPT:
    """A model of which this rank holds a share, without content yet: no rank's device ever holds all of it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        model = make()
    model.recompute = True  # what has no room for the weights has none for all activations
    mesh = init_device_mesh(device.type, (ranks.count,))
    for module in (*model.blocks, model):
        shares = fully_shard(module, mesh=mesh)
        shares.set_gradient_divide_factor(1.0)
        shares.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    return model.to_empty(device=device)


def _without_old_hooks(model: GPT) -> Callable[[torch.Tensor], ModelOutput]:
    """A sharded model's forward that does not slow down from call to call.

    FSDP2 hooks itself to every tensor of an output, for the call's backward. The head's weight is one of them and
    stays, so it would collect a hook a call; that of the hidden states does the same.
    """

    def forward(tokens: torch.Tensor) -> ModelOutput:
        output: ModelOutput = model(tokens)
        hooks = output.head_weight._backward_hooks
        if hooks:
            hooks.clear()
        return output

    return forward


def _sum(state, bucket):  # type: ignore[no-untyped-def]  # torch refuses an annotation written as text
    """DDP's exchange of gradients: their sum, where DDP itself takes the mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    future: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future
