"""Ends a run whose loss has shot up: what follows a spike that stays is wasted."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import EvalCallback, EvaluationEvent, StopTraining, hookimpl


class SpikeGuard(EvalCallback):
    """Stops when validation loss stays far above the lowest so far. The best weights are kept."""

    name: ClassVar[str] = "spike_guard"

    rise: Annotated[float, Field(gt=0)] = 1.0
    """Nats a token above the lowest validation loss that count as a spike."""
    patience: Annotated[int, Field(gt=0)] = 2
    """Evaluations in a row above it, after which the run ends; a spike often comes back by itself."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        loss, memory = event.metrics["val.loss"], event.memory
        memory["lowest"] = min(loss, memory.get("lowest", loss))
        memory["above"] = memory.get("above", 0) + 1 if loss > memory["lowest"] + self.rise else 0
        if memory["above"] >= self.patience:
            raise StopTraining(
                f"val.loss is {loss:.3f} and was {memory['lowest']:.3f}: it shot up and stayed there for "
                f"{self.patience} evaluations; try a lower lr or train.grad_clip"
            )
        return {}


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [SpikeGuard]
