"""Ends a run that is good enough: how many steps and tokens did it need?"""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import EvalCallback, EvaluationEvent, StopTraining, hookimpl


class TargetLoss(EvalCallback):
    """Stops once validation loss reaches a value; `steps` and `tokens` in metrics/train.json say when."""

    name: ClassVar[str] = "target_loss"

    value: Annotated[float, Field(gt=0)] = 5.0
    """val.loss, in nats a token, at or below which the run ends."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        loss = event.metrics["val.loss"]
        if loss <= self.value:
            raise StopTraining(f"val.loss is {loss:.4f}, and {self.value:g} was the target")
        return {}


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [TargetLoss]
