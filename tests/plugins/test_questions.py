"""The metric questions: exact match, ended turns and choice accuracy, overall and by kind of question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from pipeline.authoring.testing import check_metric
from pipeline.core.errors import DataError, ParamsError
from pipeline.evaluate.metrics import run_tasks
from pipeline.evaluate.tables import TaskItem
from pipeline.plugin import Answer, Message, Question, TextModel
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["metrics"])
ASKED = [
    Question("a.py#first-1", [1], "river"),
    Question("a.py#first-2", [2], "stone"),
    Question("b.py#yes/no-1", [3], "yes"),
    Question("b.py#yes/no-2", [4], "no"),
]


def questions(**options: Any) -> Any:
    return REGISTRY.build("metrics", "questions", {"questions": options}, "evaluate.metrics")


def model(
    folder: Path = Path(), answers: Sequence[Answer] = (), scores: dict[str, float] | None = None
) -> TextModel:
    """A model with these answers, and for each text the nats per token of `scores`; each word is a token."""

    def unused(*values: Any) -> Any:
        raise AssertionError(values)

    return TextModel(
        score=unused,
        choose=unused,
        generate=unused,
        folder=folder,
        record=unused,
        questions=lambda split, limit: ASKED[:limit] if split == "test" else [],
        chat_prompt=lambda messages: [len(each.content) for each in messages],
        answers=lambda prompts, max_new_tokens: list(answers)[: len(prompts)],
        answer_scores=lambda prompts, texts: [
            ((scores or {}).get(text, 1.0) * len(text.split()), len(text.split())) for text in texts
        ],
    )


GIVEN = [Answer(" river\n", True), Answer("stones", True), Answer("yes", False), Answer("yes", True)]


def test_the_numbers_are_shares_overall_and_by_kind() -> None:
    items: list[TaskItem] = []
    scores = {"river": 0.5, "stone": 2.0, "yes": 0.1, "no": 0.2}
    assert run_tasks([questions()], model(answers=GIVEN, scores=scores), items) == {
        "questions.exact_match": 0.5,
        "questions.exact_match.first": 0.5,
        "questions.exact_match.yes_no": 0.5,
        "questions.ended": 0.75,
        "questions.choice_accuracy": 0.5,  # river and yes are always preferred
        "questions.choice_accuracy.first": 0.5,
        "questions.choice_accuracy.yes_no": 0.5,
    }
    assert TaskItem("questions", "questions.exact_match", "a.py#first-1", 1.0, "river") in items
    assert TaskItem("questions", "questions.choice_accuracy", "a.py#first-2", 0.0, "river") in items
    assert len(items) == 12


def test_wrong_answers_are_of_the_same_kind_and_any_without_kinds() -> None:
    seen: list[tuple[int, str]] = []

    def answer_scores(prompts: Sequence[Sequence[int]], texts: Sequence[str]) -> list[tuple[float, int]]:
        seen.extend((prompt[0], text) for prompt, text in zip(prompts, texts, strict=True))
        return [(1.0, 1)] * len(texts)

    def options(**chosen: Any) -> dict[int, set[str]]:
        seen.clear()
        fake = model(answers=GIVEN)
        run_tasks([questions(**chosen)], TextModel(**{**vars(fake), "answer_scores": answer_scores}))
        return {prompt: {text for each, text in seen if each == prompt} for prompt, _ in seen}

    first, other = {"river", "stone"}, {"yes", "no"}
    assert options() == {1: first, 2: first, 3: other, 4: other}
    assert options(kind="") == dict.fromkeys(range(1, 5), first | other)
    assert all(len(each) == 2 for each in options(kind="", wrong_answers=1).values())
    assert options(kind="", wrong_answers=2) == options(kind="", wrong_answers=2)
    assert options(wrong_answers=0) == {}


def test_equal_likelihoods_are_chance_not_an_advantage() -> None:
    many = [Question(f"x#k-{number}", [number], f"word{number}") for number in range(400)]
    fake = model(answers=[Answer("", False)] * 400)
    fake = TextModel(**{**vars(fake), "questions": lambda split, limit: many})
    numbers = run_tasks([questions()], fake)
    assert numbers["questions.choice_accuracy"] == pytest.approx(0.25, abs=0.07)


def test_sums_favour_short_answers_and_means_do_not() -> None:
    asked = [Question("x#k-1", [1], "a b c"), Question("x#k-2", [2], "d")]
    fake = model(answers=[Answer("", False)] * 2, scores={"a b c": 0.5, "d": 1.0})
    fake = TextModel(**{**vars(fake), "questions": lambda split, limit: asked})
    for likelihood, right in (("mean", {"x#k-1": 1, "x#k-2": 0}), ("sum", {"x#k-1": 0, "x#k-2": 1})):
        items: list[TaskItem] = []
        run_tasks([questions(likelihood=likelihood)], fake, items)
        assert {each.item: each.value for each in items if "choice" in each.number} == right


def test_conversations_are_read_from_a_file(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    lines = [{"messages": said, "name": "own"}, {"messages": said}]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    items: list[TaskItem] = []
    fake = model(tmp_path, [Answer("Hello", True), Answer("Hi", True)])
    numbers = run_tasks([questions(file="mine.jsonl")], fake, items)
    assert numbers == {"questions.exact_match": 0.5, "questions.ended": 1.0}  # no other answer to choose
    names = [each.item.split() for each in items]
    assert [name for name, _ in names] == ["own", "own", "mine.jsonl:2", "mine.jsonl:2"]
    assert names[0][1] == names[1][1] != names[2][1]  # the item's content: pairs are of the same question
    for wrong, tokens in {
        '{"messages": []}': ("mine.jsonl line 1", "messages", "at least 2"),
        json.dumps({"messages": said[::-1]}): ("mine.jsonl line 1", "last message", "'user'"),
        '{"messages": [{"role": "me", "content": "a"}]}': ("mine.jsonl line 1", "role", "assistant"),
        "\n[1": ("mine.jsonl line 2", "JSON"),
        " \n": ("mine.jsonl", "empty"),
    }.items():
        path.write_text(wrong)
        with pytest.raises(DataError) as raised:
            run_tasks([questions(file="mine.jsonl")], fake)
        for token in ("'questions'", *tokens):
            assert token in str(raised.value)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8 at byte 0"):
        run_tasks([questions(file="mine.jsonl")], fake)


def refuse(messages: Sequence[Message]) -> list[int]:
    raise ValueError("roles must alternate")


def test_what_cannot_be_asked_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data/tasks/none\.jsonl is missing.*evaluate\.metrics\.questions\.file"):
        run_tasks([questions(file="none.jsonl")], model(tmp_path))
    with pytest.raises(DataError, match="no conversation of val ends"):
        run_tasks([questions(split="val")], model())
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": said}))
    with pytest.raises(DataError, match=r"data/tasks/a\.jsonl: a\.jsonl:1: roles must alternate"):
        run_tasks([questions(file="a.jsonl")], TextModel(**{**vars(model(tmp_path)), "chat_prompt": refuse}))
    many = [Question(f"x#{number}-1", [1], "a") for number in range(51)]
    fake = TextModel(**{**vars(model()), "questions": lambda split, limit: many})
    with pytest.raises(DataError, match=r"51 kinds.*evaluate\.metrics\.questions\.kind"):
        run_tasks([questions()], fake)
    for kind, token in {"#(.+": "no regular expression", "#.+": "one group"}.items():
        with pytest.raises(ParamsError, match=token):
            questions(kind=kind)


def test_the_contract_of_metrics_holds() -> None:
    check_metric(questions())
