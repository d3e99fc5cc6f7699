"""Corrects the overconfidence of a model that has read a short text many times."""

import math
from dataclasses import replace
from typing import ClassVar

import torch

from pipeline.plugin import IGNORED, EvalCallback, StepEvent, hookimpl

_LOGITS = 1 << 25
"""The maximum number of logits that decide the factor: 8,192 targets for a vocabulary of 4,096. The factor's
standard error is then about 0.01, and the loss is flat there."""
_ROUNDS = 10
"""Steps of Newton's method; the loss is a convex function of the factor."""
_MAX_FACTOR = 4.0


class TemperatureScaling(EvalCallback):
    """Evaluates and publishes weights whose logits are multiplied by one factor: that with the lowest loss on val
    (Guo et al., 2017). It is below 1 for a small model that read a short text many times, which makes it
    overconfident. The order of the tokens by probability stays the same. Training continues with its own weights.
    """

    name: ClassVar[str] = "temperature_scaling"

    def eval_weights(self, event: StepEvent) -> dict[str, torch.Tensor]:
        """Returns the scaled head, or the scaled final norm if the head is the embedding.

        Raises:
            ValueError: the model has neither `head.weight` nor `norm.weight`.
        """
        parameters = dict(event.model.named_parameters())
        names = ["head.weight"] if "head.weight" in parameters else ["norm.weight", "norm.bias"]
        scaled = {name: parameters[name] for name in names if name in parameters}
        if not scaled:
            raise ValueError("temperature_scaling needs a model with a head.weight or a final norm.weight")
        factor = best_factor(_val_logits(event))
        return {name: parameter.detach() * factor for name, parameter in scaled.items()}


def _val_logits(event: StepEvent) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits [N, V] and targets [N] of evenly spaced targets of val, batch by batch."""
    count = sum(int((targets != IGNORED).sum()) for targets in event.targets("val"))
    found = []
    for ids, each in zip(event.batches("val"), event.targets("val"), strict=True):
        output, targets = event.model(ids[:, :-1]), each.flatten()
        rows = (targets != IGNORED).nonzero()[:: math.ceil(count * output.vocab_size / _LOGITS) or 1, 0]
        few = replace(output, hidden=output.hidden.flatten(0, 1)[rows])
        found.append((few.logits, targets[rows]))
    return found


def best_factor(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The factor from 1/4 to 4 by which to multiply the logits for the lowest loss; 1 if the logits are all 0.

    Args:
        parts: Logits [N, V] and targets [N].
    """
    factor = 1.0
    for _ in range(_ROUNDS):
        slope = curvature = 0.0
        for logits, targets in parts:
            p = (logits * factor).softmax(dim=-1)
            mean = (p * logits).sum(dim=-1)
            slope += float((mean - logits.gather(1, targets[:, None])[:, 0]).sum())
            curvature += float((p * (logits - mean[:, None]).square()).sum())
        if not curvature:
            break
        # Bounded steps: Newton's method overshoots where the loss is far from a parabola.
        change = min(2.0, max(0.5, 1 - slope / curvature / factor))
        factor = min(_MAX_FACTOR, max(1 / _MAX_FACTOR, factor * change))
        if abs(change - 1) < 1e-3:
            break
    return factor


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [TemperatureScaling]
