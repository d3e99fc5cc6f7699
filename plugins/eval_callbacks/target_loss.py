"""Stops at a target loss, to measure the steps and tokens that a run needs to reach it."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import EvalCallback, EvaluationEvent, StopTraining, hookimpl


class TargetLoss(EvalCallback):
    """Stops training when the validation loss reaches a target. metrics/train.json has the `steps` and `tokens`."""

    name: ClassVar[str] = "target_loss"

    value: Annotated[float, Field(gt=0)] = 5.0
    """The target val.loss in nats per token."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        loss = event.metrics["val.loss"]
        if loss <= self.value:
            raise StopTraining(f"val.loss is {loss:.4f}, at or below the target {self.value:g}")
        return {}


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [TargetLoss]
