"""Losses: the training objective."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import torch

    from pipeline.plugin.components.model import ModelOutput


class Loss(Component):
    """The training objective, computed per target token."""

    @abstractmethod
    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        """Computes the loss of each target.

        Args:
            output: The model's output: use `output.logits` [B, T, V], or `hidden` and `head_weight`.
            targets: The ids to predict [B, T]; at `IGNORED` (−100) the loss must be 0 and have no gradient.

        If the method has parameters of these names, it also receives

        - `inputs`: the input ids [B, T];
        - `step` and `total_steps`: the index of the step, from 0, and the number of steps of the run;
        - `teacher`: a frozen model, called as `teacher(inputs)`, which returns a `ModelOutput`. The option
          `teacher` of the loss names the teacher's folder below data/weights: a checkpoint with the same tokenizer.

        Returns:
            The loss per target in nats [B, T]. Do not average: the training loop divides by the number of targets
            of the whole batch, over all micro-batches and ranks.
        """
