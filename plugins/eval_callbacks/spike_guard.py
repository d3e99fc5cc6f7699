"""Stops a diverged run: training after a lasting loss spike is wasted."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import EvalCallback, EvaluationEvent, StopTraining, hookimpl


class SpikeGuard(EvalCallback):
    """Stops training when the validation loss stays far above its minimum. The best weights are kept."""

    name: ClassVar[str] = "spike_guard"

    rise: Annotated[float, Field(gt=0)] = 1.0
    """A spike is a val.loss this far above its minimum, in nats per token."""
    patience: Annotated[int, Field(gt=0)] = 2
    """The number of consecutive evaluations in a spike after which training stops; many spikes recover."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        loss, memory = event.metrics["val.loss"], event.memory
        memory["lowest"] = min(loss, memory.get("lowest", loss))
        memory["above"] = memory.get("above", 0) + 1 if loss > memory["lowest"] + self.rise else 0
        if memory["above"] >= self.patience:
            raise StopTraining(
                f"val.loss rose from {memory['lowest']:.3f} to {loss:.3f} and stayed high for "
                f"{self.patience} evaluations; try a lower lr or train.grad_clip"
            )
        return {}


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [SpikeGuard]
