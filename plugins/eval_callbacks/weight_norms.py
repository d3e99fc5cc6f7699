"""The size of the weights, which shows the effect of learning rate, optimizer and weight decay."""

from collections import defaultdict
from typing import ClassVar

import torch

from pipeline.plugin import EvalCallback, EvaluationEvent, hookimpl

# The first of these in a parameter's name is its part: "blocks.0.attention_norm.weight" belongs to "norm".
_PARTS = ("norm", "embedding", "attention", "mlp", "head")


class WeightNorms(EvalCallback):
    """Records the root mean square of the weights of each part of the model, such as weights.attention."""

    name: ClassVar[str] = "weight_norms"

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Returns √(mean w²) of the weights of each part, without biases. A tied head counts as the embedding."""
        squares: dict[str, float] = defaultdict(float)
        numbers: dict[str, int] = defaultdict(int)
        for name, parameter in event.model.named_parameters():
            if name.endswith("weight"):
                part = next((part for part in _PARTS if part in name), "other")
                squares[part] += torch.linalg.vector_norm(parameter.detach()).item() ** 2
                numbers[part] += parameter.numel()
        return {f"weights.{part}": (squares[part] / numbers[part]) ** 0.5 for part in squares}


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [WeightNorms]
