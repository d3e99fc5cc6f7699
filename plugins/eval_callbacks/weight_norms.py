"""How large the weights are: what a learning rate, an optimizer or weight decay does to them."""

from collections import defaultdict
from typing import ClassVar

import torch

from pipeline.plugin import EvalCallback, EvaluationEvent, hookimpl

# The first that a parameter's name holds is its part: "blocks.0.attention_norm.weight" is a norm's.
_PARTS = ("norm", "embedding", "attention", "mlp", "head")


class WeightNorms(EvalCallback):
    """Records the root mean square of the weights of each part of the model, such as weights.attention."""

    name: ClassVar[str] = "weight_norms"

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """√(mean w²) over each part's weights, without biases; a tied head is counted as the embedding it is."""
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
