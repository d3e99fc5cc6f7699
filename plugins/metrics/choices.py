"""Multiple-choice questions."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, ValidationError

from pipeline.plugin import Metric, TaskMetric, TextModel, hookimpl


class Question(BaseModel, strict=True):
    """A line of the file: a prompt, the possible answers, and the index of the correct one, from 0."""

    prompt: str
    options: Annotated[list[str], Field(min_length=1)]
    answer: Annotated[int, Field(ge=0)]


class Choices(TaskMetric):
    """The share of multiple-choice questions for which the model gives the correct answer the highest probability.

    Each line of the file is a JSON object with a `prompt`, its `options` (each starts with the space that separates
    it from the prompt), and `answer`, the index of the correct option, from 0.
    """

    name: ClassVar[str] = "choices"

    file: Annotated[str, Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*$")] = "choices.jsonl"
    """The file of questions below data/tasks/, in JSON lines."""

    def run(self, model: TextModel) -> dict[str, float]:
        questions = self._read(model.folder / self.file)
        right = [model.choose(each.prompt, each.options) == each.answer for each in questions]
        return {"choice_accuracy": sum(right) / len(right)}

    def _read(self, path: Path) -> list[Question]:
        shown = f"data/tasks/{self.file}"
        if not path.is_file():
            raise ValueError(f"{shown} is missing: put the questions there, or set evaluate.metrics.choices.file")
        questions = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                question = Question.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                what = ".".join(map(str, first["loc"])) or "the line"
                raise ValueError(f"{shown} line {number}: {what}: {first['msg']}") from None
            if question.answer >= len(question.options):
                raise ValueError(
                    f"{shown} line {number}: answer must be 0 to {len(question.options) - 1}, not {question.answer}"
                )
            questions.append(question)
        if not questions:
            raise ValueError(f"{shown} is empty: write one question per line")
        return questions


@hookimpl
def register_metrics() -> list[type[Metric]]:
    return [Choices]
