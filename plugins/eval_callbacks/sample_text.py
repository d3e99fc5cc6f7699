"""A text from the model, now and then."""

from math import floor
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.plugin import EvalCallback, EvaluationEvent, hookimpl


class SampleText(EvalCallback):
    """Continues a prompt at each evaluation, or once an epoch, and shows it: one sees the model learn."""

    name: ClassVar[str] = "sample_text"

    prompt: str = "Every effort moves you"
    """What the model continues."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 50
    """Length of the continuation, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest token each time; higher is more varied."""
    each: Literal["evaluation", "epoch"] = "evaluation"
    """epoch: at the first evaluation of all, the first after each epoch's end, and the last step's."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        if self.each == "evaluation" or _epoch_ended(event) or event.step == event.total_steps:
            text = event.generate(self.prompt, max_new_tokens=self.max_new_tokens, temperature=self.temperature)
            event.show(text)
        return {}


def _epoch_ended(event: EvaluationEvent) -> bool:
    """Whether an epoch ended since the evaluation before; so it is where there was none before."""
    before = floor(event.history[-1]["epoch"]) if event.history else -1
    return floor(event.metrics["epoch"]) > before


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [SampleText]
