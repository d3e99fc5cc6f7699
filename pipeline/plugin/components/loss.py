"""Losses: what training minimises."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import torch

    from pipeline.plugin.components.model import ModelOutput


class Loss(Component):
    """What training minimises, token by token."""

    @abstractmethod
    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each target in nats.

        Args:
            output: What the model computed; use `output.logits` [B, T, V], or `hidden` and `head_weight`.
            targets: The ids to predict [B, T]; `IGNORED` (−100) means 0 nats and no gradient there.

        With a parameter of this name it is also given

        - `inputs`: the ids [B, T] that the model saw;
        - `step` and `total_steps`: the step, from 0 on, and how many the run has;
        - `teacher`: a frozen model, `teacher(inputs)` → `ModelOutput`; the option `teacher` names its folder below
          data/weights, a checkpoint with the same tokenizer.

        Returns:
            Nats [B, T]. The loop alone sums, scales, accumulates and counts tokens.
        """
