"""Questions to a chat model: does it answer as the conversation does, and does it prefer the right answer?"""

import re
from collections.abc import Sequence
from random import Random
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from pipeline.plugin import (
    ROLES,
    Message,
    Metric,
    Question,
    TaskMetric,
    TextModel,
    hookimpl,
    read_json_lines,
    record_digest,
)

_MOST_KINDS = 50


class Said(BaseModel, strict=True):
    """A message of a conversation in the file."""

    role: Literal[ROLES]  # type: ignore[valid-type]
    content: str


class Conversation(BaseModel, strict=True):
    """A line of the file: a conversation that ends with the right answer, and optionally its name."""

    messages: Annotated[list[Said], Field(min_length=2)]
    name: str = ""

    @model_validator(mode="after")
    def _check_end(self) -> "Conversation":
        if self.messages[-1].role != "assistant":
            raise ValueError(
                f"the last message must be the assistant's, not of the role {self.messages[-1].role!r}"
            )
        return self


def _check_kind(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    if pattern and groups != 1:
        raise ValueError(f"{pattern!r} must have one group, which is the kind, such as '#(.+)-'")
    return pattern


class Questions(TaskMetric):
    """Held-out conversations that end with the assistant: the model answers, greedily, what is asked last.

    `questions.exact_match` is the share of answers that are the right one (white space around it does not count),
    also by kind of question; `questions.ended` that of answers whose turn the model ended within `max_new_tokens`.
    `questions.choice_accuracy` is the share of questions for which the right answer is more likely than each of
    some answers to other questions of the same kind.
    """

    name: ClassVar[str] = "questions"

    split: Literal["test", "val"] = "test"
    """The held-out split with the conversations."""
    file: Annotated[str, Field(pattern=r"^([\w-][\w.-]*(/[\w-][\w.-]*)*)?$")] = ""
    """Conversations below data/tasks/ instead, in JSON lines: `messages`, each with `role` and `content`, and
    optionally a `name`."""
    limit: Annotated[int, Field(gt=0)] = 500
    """The maximum number of questions, evenly spaced over the conversations."""
    kind: Annotated[str, AfterValidator(_check_kind)] = "#(.+)-"
    """A regular expression with one group, which is the kind of a question in its name; empty for no kinds. The
    default is the text between # and the last -, such as `signature` in `library/ast.py#signature-12`."""
    max_new_tokens: Annotated[int, Field(gt=0, le=4096)] = 64
    """The maximum length of an answer, in tokens."""
    wrong_answers: Annotated[int, Field(ge=0, le=100)] = 3
    """How many answers to other questions the right one is compared with; 0 for no choice accuracy."""
    likelihood: Literal["mean", "sum"] = "mean"
    """Compares the log-likelihoods of answers per token, or their sums, which favour short answers."""

    def run(self, model: TextModel) -> dict[str, float]:
        items, questions = self._read(model)
        kinds = [self._kind(each) for each in questions]
        if len(set(kinds)) > _MOST_KINDS:
            raise ValueError(
                f"{self.kind!r} gives {len(set(kinds))} kinds, such as {kinds[0]!r}: set "
                "evaluate.metrics.questions.kind to an expression for fewer, or to ''"
            )
        results: dict[str, dict[int, bool]] = {"exact_match": {}, "ended": {}, "choice_accuracy": {}}
        given = model.answers([each.prompt for each in questions], self.max_new_tokens)
        for number, (question, answer) in enumerate(zip(questions, given, strict=True)):
            right = results["exact_match"][number] = answer.text.strip() == question.answer.strip()
            results["ended"][number] = answer.ended
            model.record("questions.exact_match", items[number], right, answer.text.strip())
            model.record("questions.ended", items[number], answer.ended)
        for number, chosen in self._choose(model, questions, kinds).items():
            right = results["choice_accuracy"][number] = chosen == questions[number].answer.strip()
            model.record("questions.choice_accuracy", items[number], right, chosen)
        return self._numbers(results, kinds)

    def _read(self, model: TextModel) -> tuple[list[str], list[Question]]:
        """The names of the items, and the questions."""
        if not self.file:
            if not (questions := model.questions(self.split, self.limit)):
                raise ValueError(f"no conversation of {self.split} ends with a message of the assistant")
            return [each.name for each in questions], questions
        setting = "evaluate.metrics.questions.file"
        lines = read_json_lines(model.folder / self.file, Conversation, f"data/tasks/{self.file}", setting)
        count = min(self.limit, len(lines))
        items, questions = [], []
        for number in (each * len(lines) // count for each in range(count)):
            messages = [Message(each.role, each.content) for each in lines[number].messages]
            name = lines[number].name or f"{self.file}:{number + 1}"
            try:
                prompt = model.chat_prompt(messages[:-1])
            except ValueError as error:
                raise ValueError(f"data/tasks/{self.file}: {name}: {error}") from None
            items.append(f"{name} {record_digest(lines[number])}")
            questions.append(Question(name, prompt, messages[-1].content))
        return items, questions

    def _kind(self, question: Question) -> str:
        found = re.search(self.kind, question.name) if self.kind else None
        return re.sub(r"[^\w%@+-]+", "_", found[1] or "").strip("_") if found else ""

    def _choose(self, model: TextModel, questions: Sequence[Question], kinds: Sequence[str]) -> dict[int, str]:
        """The likeliest of the right and some wrong answers, by the index of the question."""
        known: dict[str, set[str]] = {}
        for question, kind in zip(questions, kinds, strict=True):
            known.setdefault(kind, set()).add(question.answer.strip())
        pairs: list[tuple[int, str]] = []
        for number, (question, kind) in enumerate(zip(questions, kinds, strict=True)):
            random, right = Random(question.name), question.answer.strip()
            others = sorted(known[kind] - {right})
            if wrong := random.sample(others, min(self.wrong_answers, len(others))):
                # Of equally likely answers the first counts as chosen: in a random order that is no advantage.
                pairs += [(number, option) for option in random.sample([right, *wrong], 1 + len(wrong))]
        scores = model.answer_scores([questions[number].prompt for number, _ in pairs], [text for _, text in pairs])
        best: dict[int, tuple[float, str]] = {}
        for (number, option), (nats, tokens) in zip(pairs, scores, strict=True):
            loss = round(nats / tokens if self.likelihood == "mean" else nats, 6)
            if number not in best or loss < best[number][0]:
                best[number] = loss, option
        return {number: option for number, (_, option) in best.items()}

    def _numbers(self, results: dict[str, dict[int, bool]], kinds: Sequence[str]) -> dict[str, float]:
        """The mean of each number, and by kind those that say how good the answers are."""
        numbers = {}
        for name, values in results.items():
            if values:
                numbers[f"questions.{name}"] = sum(values.values()) / len(values)
            for kind in sorted(set(kinds)) if name != "ended" and len(set(kinds)) > 1 else ():
                some = [value for number, value in values.items() if kinds[number] == kind]
                if some:
                    numbers[f"questions.{name}.{kind or 'other'}"] = sum(some) / len(some)
        return numbers


@hookimpl
def register_metrics() -> list[type[Metric]]:
    return [Questions]
