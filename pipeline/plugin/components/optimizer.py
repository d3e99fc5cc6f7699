"""Optimizers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import torch


class Optimizer(Component):
    """How the weights follow the gradients."""

    works_on_shards: ClassVar[bool] = False
    """Whether it is right, too, when each process holds a share of every parameter (`runtime.strategy: fsdp`), as
    what treats each number for itself is; else it is refused there."""

    @abstractmethod
    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        """A torch optimizer over every parameter, each exactly once.

        With a parameter `total_steps` it is also told how many optimizer steps the run has (one that is extended:
        before that). Where the optimizer has methods `train()` and `eval()`, they are called before and after
        training steps; the weights that `eval()` leaves are evaluated and published.

        Embeddings have "embedding" in their name, the output head is "head.weight", and everything else
        with two dimensions is a hidden matrix. The schedule multiplies each group's initial `lr`.
        """

    @staticmethod
    def decay_groups(
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float
    ) -> list[dict[str, Any]]:
        """The usual groups for `build`: matrices decay; norms, biases and embeddings do not."""
        decayed: list[torch.nn.Parameter] = []
        undecayed: list[torch.nn.Parameter] = []
        for name, parameter in named_parameters:
            (decayed if parameter.ndim >= 2 and "embedding" not in name else undecayed).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]
