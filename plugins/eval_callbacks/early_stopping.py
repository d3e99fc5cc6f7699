"""Early stopping."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import EvalCallback, EvaluationEvent, StopTraining, hookimpl


class EarlyStopping(EvalCallback):
    """Stops training when the validation loss has not improved for `patience` evaluations."""

    name: ClassVar[str] = "early_stopping"

    patience: Annotated[int, Field(gt=0)] = 5
    """The number of evaluations without improvement after which training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """The smallest decrease of val.loss that counts as an improvement, in nats per token."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        loss = event.metrics["val.loss"]
        if loss < event.memory.get("best", float("inf")) - self.min_delta:
            event.memory["best"], event.memory["waited"] = loss, 0
        else:
            event.memory["waited"] += 1
        if event.memory["waited"] >= self.patience:
            raise StopTraining(f"val.loss has not improved for {self.patience} evaluations")
        return {}


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [EarlyStopping]
