"""The interface between the loop and the model's layout. Here for one process; DDP and FSDP2 are in
distributed/."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from types import MethodType
from typing import Any, ClassVar

import torch
from torch.utils.checkpoint import checkpoint

from pipeline.distributed.ranks import Ranks
from pipeline.model.architecture import LanguageModel, call_model, checked_output, units
from pipeline.model.device import device_of
from pipeline.model.linear_cross_entropy import FusedOutput, Softmax, softmax_and_gradient
from pipeline.plugin.components import ModelOutput
from pipeline.train.runtime_config import RuntimeConfig


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """A model in a single process, and the base class for DDP and FSDP2.

    Gradients are summed over the ranks, not averaged: the loop divides by the number of targets of the whole batch,
    which may be spread unevenly over the ranks.

    Attributes:
        model: The model. Under FSDP2 its parameters are DTensors, of which each rank holds a shard.
        ranks: The processes.
        writers: The processes that write a training checkpoint together: under FSDP2 all ranks, each its shards;
            otherwise rank 0 alone.
        compiled: Whether the model is compiled, and with it the loss.
        sharded: Whether this is FSDP2.
    """

    model: LanguageModel
    ranks: Ranks = field(default_factory=Ranks)
    writers: Ranks = field(default_factory=Ranks)
    compiled: bool = False
    sharded: ClassVar[bool] = False

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return device_of(self.model)

    @cached_property
    def _softmax(self) -> Softmax:
        return torch.compile(softmax_and_gradient, dynamic=False) if self.compiled else softmax_and_gradient

    def forward(self, ids: torch.Tensor) -> ModelOutput:
        """Ids [B, T] → the model's output. The backward pass sums gradients over the ranks.

        Raises:
            PluginError: the model returned no valid ModelOutput.
        """
        output = checked_output(self.call_model(ids), self.model, ids)
        return FusedOutput(output.hidden, output.head_weight, output.vocab_size, output.auxiliary, self._softmax)

    def call_model(self, ids: torch.Tensor) -> Any:
        """Calls the model, wrapped where the strategy needs a wrapper; the output is not checked."""
        return call_model(self.model, ids)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """The context of a micro-batch's forward and backward pass. Gradients are exchanged in the `last` one."""
        return nullcontext()

    def eager(self) -> AbstractContextManager[Any]:
        """Runs compiled modules eagerly inside the block: evaluation has many shapes, and each would recompile."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def model_to_score(self) -> LanguageModel:
        """The model to evaluate in float32, with the present weights. All ranks must call it."""
        return self.model

    def clip(self, max_norm: float) -> torch.Tensor:
        """Clips the total norm of the gradients to `max_norm`.

        Returns:
            The norm before clipping, a scalar on the device. A GPU's is not read: it runs on asynchronously.
        """
        parameters = list(self.model.parameters())
        gradients = [each.grad for each in parameters if each.grad is not None]
        total = self.full_tensor(torch.nn.utils.get_total_norm(gradients, error_if_nonfinite=False))
        # Without need, the call multiplies every gradient by 1; on a GPU, the need is not known without waiting.
        if max_norm < math.inf and (total.device.type == "cuda" or bool(total > max_norm)):
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
        return total

    def full_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """The full tensor of a parameter or gradient. Under FSDP2, all ranks must call it."""
        return tensor

    def full(self, state: Any) -> Any:
        """A copy of a state dict with full tensors on rank 0's CPU; the other ranks get meta tensors. All ranks
        must call it."""
        return map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), state)

    def to_cpu(self, state: Any) -> Any:
        """A copy of a state dict on the CPU: `full`, or under FSDP2 this rank's shards, so that no rank holds the
        full model. All ranks must call it."""
        return self.full(state)

    def distribute(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Converts loaded weights, full on rank 0 or sharded, to the form that `to_cpu` returns. All ranks must
        call it."""
        return weights

    def place_nested(self, saved: Any) -> Any:
        """Moves saved tensors in nested dicts and lists to the device, and shards those that have a parameter's
        name like the parameter. All ranks must call it."""
        return map_tensors(lambda tensor: tensor.to(self.device), saved)

    @torch.no_grad()
    def overwrite(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Copies tensors into the model's state dict, by name. They must be laid out like the model's; other
        entries stay unchanged."""
        for name, tensor in self.model.state_dict().items():  # reads FSDP2's current shards
            if name in weights:
                tensor.copy_(weights[name])

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Loads weights: full ones (needed on rank 0 only) or shards. All ranks must call it."""
        self.model.load_state_dict(weights)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        """Loads an optimizer's state: full tensors (needed on rank 0 only) or shards. All ranks must call it."""
        optimizer.load_state_dict(saved)

    def full_model(self) -> LanguageModel | None:
        """The full model on rank 0, for callbacks; None on the other ranks. Under FSDP2 it is a copy on the CPU,
        and all ranks must call it."""
        return self.model


def prepared(make: Callable[[], LanguageModel], config: RuntimeConfig) -> LanguageModel:
    """The full model on its device, where it compiles itself and recomputes activations as `config` says."""
    model = make().to(config.device)
    for unit in units(model):
        wrap_forward(unit, config.compile == "blocks", config.recompute and unit is not model)
    if config.compile == "model":
        model.compile(dynamic=False)
    return model


def wrap_forward(unit: torch.nn.Module, compiled: bool, recompute: bool) -> None:
    """Compiles a unit's forward pass, and wraps it in activation checkpointing (Chen et al., 2016), in place.

    Hooks, such as FSDP2's, stay outside. Units of one class share compiled code.
    """
    if not compiled and not recompute:
        return
    forward = type(unit).forward
    if compiled:
        forward = torch.compile(forward, dynamic=False)

    def recomputing(unit: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(unit, *args, **kwargs)
        return checkpoint(forward, unit, *args, use_reentrant=False, **kwargs)

    unit.forward = MethodType(recomputing if recompute else forward, unit)  # a copy of the unit gets its own


def map_tensors(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """A copy of nested dicts, lists and tuples with `change` applied to every tensor."""
    return map_named(lambda name, tensor: change(tensor), value)


def map_named(change: Callable[[str, torch.Tensor], Any], value: Any, name: str = "") -> Any:
    """As `map_tensors`, but `change` also gets each tensor's path, such as "/state/0/exp_avg"."""
    if isinstance(value, torch.Tensor):
        return change(name, value)
    if isinstance(value, dict):
        return {key: map_named(change, each, f"{name}/{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_named(change, each, f"{name}/{number}") for number, each in enumerate(value))
    return value
