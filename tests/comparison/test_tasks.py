"""Two runs on the same questions: the exact McNemar test, in the terminal, on the page and as JSON."""

from __future__ import annotations

import json
import math
from itertools import product

import pytest
from conftest import Project
from made_runs import scored, write_run

from pipeline.comparison.tasks import exact_p_value
from pipeline.evaluate.report.training import CURVES
from pipeline.evaluate.tables import TaskItem


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (0, 5), (2, 7), (4, 4), (3, 9)])
def test_p_is_the_share_of_all_outcomes_that_are_as_uneven(only_first: int, only_second: int) -> None:
    total = only_first + only_second
    observed = abs(only_first - only_second)
    outcomes = [abs(2 * sum(each) - total) >= observed for each in product((0, 1), repeat=total)]
    assert exact_p_value(only_first, only_second) == pytest.approx(sum(outcomes) / len(outcomes))


def test_p_of_very_many_questions_is_a_number() -> None:
    assert exact_p_value(2000, 0) == pytest.approx(2.0**-1999, abs=0)  # 0 in floating point
    assert exact_p_value(5000, 5100) == pytest.approx(math.erfc(99 / math.sqrt(2 * 10_100)), rel=1e-3)


def items(values: str, first: int = 0, number: str = "questions.exact_match") -> list[TaskItem]:
    return [TaskItem("questions", number, f"q{item}", float(value), "") for item, value in enumerate(values, first)]


def test_base_beside_tuned_on_the_same_questions(project: Project) -> None:
    write_run(project.root / "base", scored(1), items=items("0000001100", first=2))
    write_run(
        project.root / "tuned", scored(1, shift=-0.1), items=items("1111101111") + items("1", 0, "only.tuned")
    )
    write_run(project.root / "plain", scored(1))
    out = project.succeed("compare", "base", "tuned").out
    line = next(line for line in out.splitlines() if "questions.exact_match" in line)
    # q2 … q9 are in both: A answers only q8 and q9, B all but q5
    assert line.split() == ["questions.exact_match", "0.2500", "0.8750", "+0.6250", "0", "5", "8", "0.062"]
    assert "exact McNemar" in out
    assert "only.tuned" not in out
    (found,) = json.loads(project.succeed("compare", "base", "tuned", "--json").out)["tasks"]
    assert (found["only_first"], found["only_second"], found["p_value"]) == (0, 5, 0.0625)
    assert "| questions.exact_match |" in project.succeed("compare", "base", "tuned", "--markdown").out
    for run, name in product(("base", "tuned"), CURVES):
        (project.root / run / "metrics" / name).write_text("step\tval.loss\n0\t5.5\n10\t4.5\n")
    project.succeed("compare", "base", "tuned", "--html", "page.html")
    assert "questions.<wbr>exact_<wbr>match" in (project.root / "page.html").read_text()
    for other in ("plain", "base"):
        assert "McNemar" not in project.succeed("compare", "plain", other).out


def test_a_damaged_table_is_one_line(project: Project) -> None:
    write_run(project.root / "a", scored(1), items=items("01"))
    write_run(project.root / "b", scored(1), items=items("11"))
    (project.root / "b" / "reports" / "tasks.tsv").write_text("task\tnumber\n")
    result = project.run("compare", "a", "b")
    assert result.code == 1
    assert "b: reports/tasks.tsv is damaged" in result.err
    assert result.err.count("\n") == 1
