"""The benchmarks' own arithmetic, their table, and a measurement so small that it ends at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY

from benchmarks import table
from benchmarks.goals import GOALS, verdict
from benchmarks.measure import Measured, Round, Side, SideFailedError, ratios, take_turns
from benchmarks.results import Results, Row, compared, read, shown_command

ROW = Row(
    "training M, 1 thread", "nanoGPT (fp32)", 2.5, "times", "tokens per processor-second", 2000.0, 800.0, 2.4,
    [2.4, 2.5, 2.6], "training against nanoGPT",
)  # fmt: skip


def rounds(*seconds: float) -> list[Round]:
    return [Round(10.0, processor, 2 * processor) for processor in seconds]


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians() -> None:
    ours, theirs = rounds(1.0, 4.0, 1.0), rounds(3.0, 4.0, 2.0)
    assert ratios(ours, theirs) == [3.0, 1.0, 2.0]
    row = compared("x", "other", Measured(ours, {}, 1), Measured(theirs, {"setting": "fp32"}, 1), "tokens")
    assert (row.value, row.wall, row.against) == (2.0, 2.0, "other (fp32)")
    assert (row.ours, row.theirs) == (10.0, 10.0 / 3.0)


def test_a_verdict_holds_the_value_against_its_goal() -> None:
    assert verdict(ROW) == "reached"
    assert verdict(Row("x", "", 1.0, goal="training against nanoGPT")) == "missed"
    assert verdict(Row("x", "", 0.3, "seconds", goal="--help")) == "missed"
    assert verdict(Row("x", "", 0.3, "seconds")) == ""


def test_results_are_read_as_they_were_written_and_become_a_table(tmp_path: Path) -> None:
    results = Results("training", [ROW], {"litgpt": "no path was given"}, 12.0)
    results.write(tmp_path)
    assert read(tmp_path, ["book", "training"]) == [results]
    text = table.markdown([results])
    cells = "nanoGPT (fp32) | 2,000 tokens per processor-second | 800 | 2.50× | 2.40× | ≥ 2.30× | reached |"
    assert cells in text
    assert "Not measured: litgpt (no path was given)" in text
    document = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    once = table.with_table(document, text)
    assert cells in once
    assert "old" not in once
    assert table.with_table(once, text) == once
    assert "reached" in table.plain([results])


def test_the_documents_table_is_made_from_the_results_that_are_committed() -> None:
    text = table.DOCUMENT.read_text()
    assert table.with_table(text, table.markdown(table.every())) == text, "run `python -m benchmarks.table`"


def test_each_missed_goal_is_explained() -> None:
    explained = table.DOCUMENT.read_text().partition("## Goals that are missed")[2]
    for results in table.every():
        for row in results.rows:
            assert verdict(row) != "missed" or row.goal in explained, row.goal


def test_results_name_no_folder_of_the_machine() -> None:
    assert (
        shown_command(["--book", "/somewhere/of/mine/book", "--quick"])
        == "python -m benchmarks --book book --quick"
    )
    for path in (REPOSITORY / "benchmarks" / "results").glob("*.json"):
        assert not any(place in path.read_text() for place in ("/home/", "/tmp/", "/work/", "/Users/")), path


def test_every_goal_is_some_rows() -> None:
    sources = "".join(path.read_text() for path in (REPOSITORY / "benchmarks").glob("*.py") if path.stem != "goals")
    for goal in GOALS:
        assert f'"{goal}"' in sources or goal.startswith(("training against ", "generation against ")), goal


def test_sides_take_turns_each_in_its_process() -> None:
    line = {"commands": [["python", "-c", "sum(range(100000))"]], "folder": ".", "work": 2.0}
    sides = [
        Side("command", "benchmarks.measure:command", line),
        Side("loader", "benchmarks.loading:ours", {"shape": SHAPE, "tokens": 1000}),
    ]
    done = take_turns(sides, 3)
    assert [len(done[name].rounds) for name in ("command", "loader")] == [3, 3]
    assert all(each.work == 2.0 and 0 < each.processor < each.wall * 4 for each in done["command"].rounds)
    assert done["loader"].peak_memory > 1e7
    assert done["loader"].rate > 0


SHAPE = {"vocab_size": 512, "context_length": 16, "batch_size": 2}


def test_a_side_that_fails_is_named_with_its_error() -> None:
    line = {"commands": [["python", "-c", "raise SystemExit('no such luck')"]], "folder": ".", "work": 1.0}
    with pytest.raises(SideFailedError, match=r"(?s)unlucky: .*no such luck"):
        take_turns([Side("unlucky", "benchmarks.measure:command", line)], 1)
