"""Compares two runs on the same items of their tasks, such as questions.

The test is about these two sets of weights; the random sample is the questions: does one of the models answer more
questions of this kind?
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.comparison.runs import RunResult


@dataclass(frozen=True)
class TaskDifference:
    """The difference of two runs in one number of a task.

    Attributes:
        number: The name of the number.
        items: The number of items that both runs have.
        first, second: The mean values.
        only_first, only_second: The numbers of items whose value is larger in A, and in B: of questions, those that
            only A or only B answers correctly.
        p_value: The probability of a difference at least as clear if there is none.
    """

    number: str
    items: int
    first: float
    second: float
    only_first: int
    only_second: int
    p_value: float


def compare_tasks(first: RunResult, second: RunResult) -> list[TaskDifference]:
    """Compares the numbers of tasks that both runs have, over their common items.

    The test is McNemar's (1947, "Note on the sampling error of the difference between correlated proportions or
    percentages") in its exact, two-sided form: if there is no difference, an item in which the runs differ is A's
    or B's with probability ½, so the smaller count has a binomial distribution. For values other than 0 and 1 this
    is the sign test.
    """
    found = []
    for number in sorted(first.items.keys() & second.items.keys()):
        mine, others = first.items[number], second.items[number]
        pairs = [(mine[item], others[item]) for item in mine if item in others]
        if pairs:
            only_first, only_second = (sum(sign * (each - other) > 0 for each, other in pairs) for sign in (1, -1))
            found.append(
                TaskDifference(
                    number=number,
                    items=len(pairs),
                    first=math.fsum(each for each, _ in pairs) / len(pairs),
                    second=math.fsum(each for _, each in pairs) / len(pairs),
                    only_first=only_first,
                    only_second=only_second,
                    p_value=exact_p_value(only_first, only_second),
                )
            )
    return found


def exact_p_value(only_first: int, only_second: int) -> float:
    """The two-sided p of the exact McNemar test."""
    total, smaller = only_first + only_second, min(only_first, only_second)
    tail, ways = 0, 1  # integers of any size: `ways` is the binomial coefficient of `count`
    for count in range(smaller + 1):
        tail += ways
        ways = ways * (total - count) // (count + 1)
    return min(1.0, tail / (1 << max(total - 1, 0)))
