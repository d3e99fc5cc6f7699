"""Optimizers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import torch


class Optimizer(Component):
    """An optimizer: how gradients update the weights."""

    works_on_shards: ClassVar[bool] = False
    """Whether the update is correct when each rank holds only a shard of every parameter (`runtime.strategy:
    fsdp`), as elementwise updates are. If False, training with fsdp refuses this optimizer."""

    @abstractmethod
    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        """Builds a torch optimizer that holds every parameter exactly once.

        If the method has a parameter `total_steps`, it receives the number of optimizer steps of the run (before
        any extension). If the optimizer has methods `train()` and `eval()`, as schedule-free optimizers have, they
        are called before and after training steps; the weights after `eval()` are evaluated and published.

        Embeddings have "embedding" in their name, the output head is "head.weight", and every other parameter with
        two dimensions is a hidden matrix. The learning rate of a group is its initial `lr` times the schedule.
        """

    @staticmethod
    def decay_groups(
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float
    ) -> list[dict[str, Any]]:
        """Parameter groups for `build`: weight decay for matrices, none for norms, biases and embeddings."""
        decayed: list[torch.nn.Parameter] = []
        undecayed: list[torch.nn.Parameter] = []
        for name, parameter in named_parameters:
            (decayed if parameter.ndim >= 2 and "embedding" not in name else undecayed).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]
