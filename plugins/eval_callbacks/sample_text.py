"""A text from the model at each evaluation."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import EvalCallback, EvaluationEvent, hookimpl


class SampleText(EvalCallback):
    """Continues a prompt at each evaluation and shows it: one sees the model learn."""

    name: ClassVar[str] = "sample_text"

    prompt: str = "Every effort moves you"
    """What the model continues."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 50
    """Length of the continuation, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest token each time; higher is more varied."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        text = event.generate(self.prompt, max_new_tokens=self.max_new_tokens, temperature=self.temperature)
        event.show(" ".join(text.split()))
        return {}


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [SampleText]
