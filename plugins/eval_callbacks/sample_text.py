"""Sample texts during training."""

from math import floor
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.plugin import EvalCallback, EvaluationEvent, hookimpl


class SampleText(EvalCallback):
    """Continues a prompt at each evaluation or once per epoch, and prints it and adds it to the report."""

    name: ClassVar[str] = "sample_text"

    prompt: str = "Every effort moves you"
    """The text that the model continues."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 50
    """The maximum number of new tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """The sampling temperature; 0 always takes the most likely token."""
    each: Literal["evaluation", "epoch"] = "evaluation"
    """`epoch`: at the first evaluation of the run, the first one after each epoch, and the one at the last step."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        if self.each == "evaluation" or _epoch_ended(event) or event.step == event.total_steps:
            text = event.generate(self.prompt, max_new_tokens=self.max_new_tokens, temperature=self.temperature)
            event.show(text)
        return {}


def _epoch_ended(event: EvaluationEvent) -> bool:
    """Whether an epoch ended since the previous evaluation; True at the first evaluation."""
    before = floor(event.history[-1]["epoch"]) if event.history else -1
    return floor(event.metrics["epoch"]) > before


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [SampleText]
