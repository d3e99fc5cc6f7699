"""A model as the loop trains it. Here in one process; in several, by DDP or FSDP2: `distributed/parallel.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from pipeline.model.architecture import LanguageModel, checked_output
from pipeline.model.device import device_of
from pipeline.model.linear_cross_entropy import FusedOutput, Softmax, softmax_and_gradient
from pipeline.plugin.components import ModelOutput
from pipeline.train.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """A model that one process trains, and the interface of those that several train.

    Gradients are summed over the ranks, never averaged: the loop divides by the targets of the whole batch, so
    that ranks with fewer targets weigh less.

    Attributes:
        model: The model; under FSDP2 its parameters are DTensors, of which each rank holds a shard.
        ranks: The processes.
        writers: The processes that write a training checkpoint together: under FSDP2 all, each its shards;
            otherwise each alone, and only rank 0 has something to write.
        compiled: Whether the model is compiled.
        softmax: Computes the loss from logits; compiled with the model.
        sharded: Whether it is FSDP2.
    """

    model: LanguageModel
    ranks: Ranks = field(default_factory=Ranks)
    writers: Ranks = field(default_factory=Ranks)
    compiled: bool = False
    softmax: Softmax = softmax_and_gradient
    sharded: ClassVar[bool] = False

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return device_of(self.model)

    def forward(self, ids: torch.Tensor) -> ModelOutput:
        """Ids [B, T] → the model's output; its backward sums gradients over the ranks.

        Raises:
            PluginError: the model returned something else.
        """
        output = checked_output(self.call_model(ids), self.model, ids)
        return FusedOutput(output.hidden, output.head_weight, output.vocab_size, output.auxiliary, self.softmax)

    def call_model(self, ids: torch.Tensor) -> Any:
        """What the model itself returns."""
        return self.model(ids)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch's forward and backward; `last` says whether it is the step's last."""
        return nullcontext()

    def eager(self) -> AbstractContextManager[Any]:
        """Inside, what is compiled runs as it is written: evaluation has many shapes, and each would compile."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def clip(self, max_norm: float) -> float:
        """Scales the gradients down to a norm of at most `max_norm`; returns the norm that they had."""
        parameters = list(self.model.parameters())
        gradients = [each.grad for each in parameters if each.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients, error_if_nonfinite=False)
        norm = float(self.full_tensor(total))
        if norm > max_norm:  # else it would multiply every gradient by one
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
        return norm

    def full_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """All of a parameter or gradient, which under FSDP2 all ranks must ask for."""
        return tensor

    def full(self, state: Any) -> Any:
        """A copy of a state dict with full tensors, on rank 0's CPU; the other ranks get the same with tensors
        without content ("meta"). All ranks must call it."""
        return map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), state)

    def to_cpu(self, state: Any) -> Any:
        """A copy of a state dict on the CPU: `full`, or under FSDP2 this rank's shards, so that no rank ever holds
        all. All ranks must call it."""
        return self.full(state)

    def distribute(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Loaded weights, full on rank 0 or sharded, in the form that `to_cpu` returns. All ranks must call it."""
        return weights

    def place_nested(self, saved: Any) -> Any:
        """Saved tensors in nested dicts and lists, on the device; those under a parameter's name are sharded as it
        is. All ranks must call it, with what `distribute` takes."""
        return map_tensors(lambda tensor: tensor.to(self.device), saved)

    @torch.no_grad()
    def overwrite(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Copies tensors that are laid out like the model's own into it, by name; the others stay."""
        for name, tensor in self.model.state_dict().items():  # which gathers FSDP2's shards anew
            if name in weights:
                tensor.copy_(weights[name])

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Loads weights: full ones, which only rank 0 needs to have, or shards. All ranks must call it."""
        self.model.load_state_dict(weights)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        """Loads an optimizer's state: full tensors, with content on rank 0, or shards. All ranks must call it."""
        optimizer.load_state_dict(saved)

    def full_model(self) -> LanguageModel | None:
        """The full model on rank 0, to look at and generate with; None on the others. Under FSDP2 it is a copy on
        the CPU, and all ranks must call it."""
        return self.model


def single_process(make: Callable[[], LanguageModel], device: torch.device, compiled: bool) -> Parallel:
    """Makes a model for one process on its device; `compiled` says whether it is compiled."""
    model = make().to(device)
    if not compiled:
        return Parallel(model=model)
    compile_units(model)
    return Parallel(model=model, compiled=True, softmax=compiled_softmax())


def units(model: LanguageModel) -> list[torch.nn.Module]:
    """What is compiled and sharded by itself: each of the model's blocks, or, where it has none, the whole."""
    return list(getattr(model, "blocks", None) or [model])


def compile_units(model: LanguageModel) -> None:
    """Compiles the model's parts: blocks take seconds, a whole model minutes. Equal blocks share the code."""
    for unit in units(model):
        unit.compile(dynamic=False)


def compiled_softmax() -> Softmax:
    """The loss's softmax, compiled."""
    return torch.compile(softmax_and_gradient, dynamic=False)


def map_tensors(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """A copy of nested dicts, lists and tuples with `change` applied to every tensor; anything else as it is."""
    return map_named(lambda name, tensor: change(tensor), value)


def map_named(change: Callable[[str, torch.Tensor], Any], value: Any, name: str = "") -> Any:
    """`map_tensors` whose `change` is told each tensor's path as well, such as "/state/0/exp_avg"."""
    if isinstance(value, torch.Tensor):
        return change(name, value)
    if isinstance(value, dict):
        return {key: map_named(change, each, f"{name}/{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_named(change, each, f"{name}/{number}") for number, each in enumerate(value))
    return value
