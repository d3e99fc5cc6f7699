"""The contract of a metric, and scores to test one with."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.authoring.testing.toy import instance_of, keeps_no_state
from pipeline.plugin.components import Answer, Metric, Question, TaskMetric, TextModel, TokenScores


def token_scores(count: int = 40, seed: int = 0) -> TokenScores:
    """Random scores of `count` targets with a vocabulary of 13 ids, for tests of metrics. Some targets have 0
    bytes."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 13, generator=generator)
    targets = torch.randint(13, (count,), generator=generator)
    nats = nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    return TokenScores(
        targets=targets, nats=nats, correct=logits.argmax(dim=-1) == targets,
        confidence=logits.double().softmax(dim=-1).amax(dim=-1), positions=torch.arange(count) % 8,
        bytes=targets % 5, logits=logits,
    )  # fmt: skip


@keeps_no_state
def check_metric(component: type[Metric] | Metric, tasks: Path | None = None) -> None:
    """Checks a metric: finite, reproducible numbers; sums over parts of a text add up to the sums over the whole.

    A task is run on a toy model, with `tasks` as the folder of its files (default: data/tasks).
    """
    metric = instance_of(component)
    if isinstance(metric, TaskMetric):
        numbers = metric.run(_toy_model(tasks or Path("data/tasks")))
        _check_metric_numbers(numbers)
        assert numbers, "a task must return a number"
        return
    whole, before = token_scores(), token_scores()

    def part(first: int, last: int) -> TokenScores:
        return TokenScores(**{name: value[first:last] for name, value in vars(whole).items()})

    def accumulate(*parts: TokenScores) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for each in parts:
            metric.update(sums, each)
        return sums

    sums = accumulate(whole)
    for name, value in vars(before).items():
        assert torch.equal(value, vars(whole)[name]), f"scores.{name} must not be changed"
    for name, value in sums.items():
        assert isinstance(name, str), f"{name!r}: names must be strings"
        assert isinstance(value, int | float), f"the sum {name!r} must be a number: call float() on it"
        assert math.isfinite(value), f"the sum {name!r} must be finite"
    numbers = metric.result(sums)
    _check_metric_numbers(numbers)
    assert numbers, "a metric must return a number"
    assert metric.result(accumulate(whole)) == numbers, "the same text must give the same numbers"
    for cut in (1, 17, 39):
        separate = [accumulate(part(0, cut)), accumulate(part(cut, 40))]
        added: dict[str, float] = defaultdict(float)
        for name, value in chain.from_iterable(each.items() for each in separate):
            added[name] += value
        for what, found in (("one after the other", accumulate(part(0, cut), part(cut, 40))), ("added up", added)):
            partial = metric.result(found)
            assert partial.keys() == numbers.keys(), (
                f"the sums of two parts, {what}, have other names than the sums over the whole"
            )
            for name, value in numbers.items():
                assert math.isclose(partial[name], value, rel_tol=1e-6, abs_tol=1e-9), (
                    f"{name}: the sums of two parts, {what}, must give the same number as the whole"
                )
    for position in (0, 7, 39):
        _check_metric_numbers(metric.result(accumulate(part(position, position + 1))))


def _check_metric_numbers(numbers: Any) -> None:
    assert isinstance(numbers, dict), "a metric must return a dict of numbers"
    for name, value in numbers.items():
        assert isinstance(name, str), f"{name!r}: names must be strings"
        assert isinstance(value, int | float), f"{name} must be a number: call float() on it"
        assert math.isfinite(value), f"{name} must be finite: leave it out where it is not"


def _toy_model(folder: Path) -> TextModel:
    """A model with a loss of one nat per character, which answers two held-out questions with "yes"."""
    return TextModel(
        score=lambda text, prompt="": float(len(text)),
        choose=lambda prompt, options: min(range(len(options)), key=lambda number: len(options[number])),
        generate=lambda prompt, max_new_tokens=50, temperature=0.0: prompt + " and on",
        folder=folder,
        record=lambda number, item, value, text="": None,
        questions=lambda split, limit: [Question(f"{split}#toy-{word}", [1, 2], word) for word in ("yes", "no")],
        chat_prompt=lambda messages: [len(each.content) for each in messages],
        answers=lambda prompts, max_new_tokens: [Answer("yes", ended=True) for _ in prompts],
        answer_scores=lambda prompts, texts: [(float(len(text)), 1 + len(text)) for text in texts],
    )
