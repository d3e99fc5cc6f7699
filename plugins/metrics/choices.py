"""Multiple-choice questions."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, model_validator

from pipeline.plugin import Metric, TaskMetric, TextModel, hookimpl, read_json_lines, record_digest


class Choice(BaseModel, strict=True):
    """A line of the file: a prompt, the possible answers, and the index of the correct one, from 0."""

    prompt: str
    options: Annotated[list[str], Field(min_length=1)]
    answer: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _check_answer(self) -> "Choice":
        if self.answer >= len(self.options):
            raise ValueError(f"answer must be 0 to {len(self.options) - 1}, not {self.answer}")
        return self


class Choices(TaskMetric):
    """The share of multiple-choice questions for which the model gives the correct answer the highest probability.

    Each line of the file is a JSON object with a `prompt`, its `options` (each starts with the space that separates
    it from the prompt), and `answer`, the index of the correct option, from 0.
    """

    name: ClassVar[str] = "choices"

    file: Annotated[str, Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*$")] = "choices.jsonl"
    """The file of questions below data/tasks/, in JSON lines."""

    def run(self, model: TextModel) -> dict[str, float]:
        setting = "evaluate.metrics.choices.file"
        questions = read_json_lines(model.folder / self.file, Choice, f"data/tasks/{self.file}", setting)
        right = 0
        for number, each in enumerate(questions, 1):
            chosen = model.choose(each.prompt, each.options)
            right += chosen == each.answer
            item = f"{self.file}#{number} {record_digest(each)}"
            model.record("choice_accuracy", item, chosen == each.answer, each.options[chosen])
        return {"choice_accuracy": right / len(questions)}


@hookimpl
def register_metrics() -> list[type[Metric]]:
    return [Choices]
