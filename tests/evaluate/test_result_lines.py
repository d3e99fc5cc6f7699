"""What evaluate prints at its end: the table, the result, and the run before that it is compared with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.paths import Paths
from pipeline.evaluate.result_lines import (
    comparable,
    next_commands,
    read_before,
    result,
    scored,
    table,
    tasks,
    worse_than_unigram,
)

NUMBERS = {
    "val": {
        "loss": 10.1234, "perplexity": 24_919.5, "bits_per_byte": 4.1234, "accuracy_top5": 0.5, "tokens": 31_043,
        "calibration_error": 0.05,
    },
    "test": {"loss": 3.7, "perplexity": 40.45, "bits_per_byte": 1.815, "tokens": 25_643},
    "tasks": {"choices": 0.5},
}  # fmt: skip
INTERVAL = {"loss": {"low": 3.6, "high": 10.8}, "perplexity": {"low": 20_000.25, "high": 34_000.5}}
ABOUT: dict[str, Any] = {
    side: {"text": digest, "accuracy": 0.31, "interval": INTERVAL, "baselines": {"unigram": 4.621, "xz": 2.0135}}
    for side, digest in (("val", "v"), ("test", "t"))
}
NOW = {"stride_share": 1.0}
UNITS = {"val": "31 documents", "test": "33 documents"}


def test_the_table_fits_80_columns_and_names_every_number() -> None:
    lines = [*table(NUMBERS, ABOUT, UNITS)]
    assert max(map(len, lines)) <= 80
    rows = {line.split("  ")[0]: line for line in lines}
    assert {"loss", "perplexity", "bits per byte", "accuracy", "accuracy top5", "calibration error"} <= set(rows)
    assert "24,920" in rows["perplexity"]
    assert all(each in lines[-1] for each in ("95%", "31 documents of val", "33 documents of test"))


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({}, ""),
        ({"test": ("t", 1.829)}, "0.014 better"),
        ({"test": ("t", 1.8)}, "0.015 worse"),
        ({"test": ("t", 1.8151)}, "as before"),
        ({"test": ("other", 1.829)}, "other text"),
        ({"val": ("v", 1.829)}, ""),
    ],
)
def test_the_result_stands_beside_baselines_and_the_run_before(
    before: dict[str, tuple[str, float]], said: str
) -> None:
    side, text = result(NUMBERS, ABOUT, before)
    assert side == "test"
    assert len(text) + 9 <= 80
    assert text.startswith("1.815 bits per byte (xz 2.01, unigram 4.62)")
    assert said in text
    assert ("before" in text) == bool(said)


def test_beside_a_change_on_test_stands_that_on_val() -> None:
    before = {"test": ("t", 1.829), "val": ("v", 4.1)}
    assert result(NUMBERS, ABOUT, before)[1].endswith("0.014 better than before; val 0.023 worse")
    before["val"] = ("other", 4.1)
    assert result(NUMBERS, ABOUT, before)[1].endswith("0.014 better than before")


def test_without_test_val_is_the_result_and_without_bits_the_loss() -> None:
    assert result({"val": NUMBERS["val"]}, {"val": ABOUT["val"]}, {})[0] == "val"
    assert result({"val": {"loss": 3.5}}, {"val": ABOUT["val"]}, {}) == ("val", "loss 3.5000 nats per token")


def test_a_split_that_is_predicted_worse_than_by_the_unigram_model_is_named() -> None:
    assert [*worse_than_unigram(NUMBERS, ABOUT)] == []
    numbers = {**NUMBERS, "test": {**NUMBERS["test"], "bits_per_byte": 4.7}}
    (sentence,) = worse_than_unigram(numbers, ABOUT)
    assert all(part in sentence for part in ("test", "4.700", "4.621", "split.by"))


def test_compare_is_advised_only_where_it_takes_both_runs() -> None:
    both = {"val": ("v", 4.0), "test": ("t", 1.8)}
    assert comparable(ABOUT, both)
    assert comparable(ABOUT, {"val": ("v", 4.0)})
    assert not comparable(ABOUT, {})
    assert not comparable(ABOUT, both | {"test": ("other", 1.8)})


def test_the_next_command_can_be_copied() -> None:
    assert next_commands(["Return a new"], comparable=False) == 'pipeline generate "Return a new"'
    assert "'$(x)'" in next_commands(["$(x)"], comparable=True)
    assert "pipeline compare" in next_commands([], comparable=True)
    assert len(next_commands(["long " * 30], comparable=True)) < 71


def test_the_run_before_is_in_reports_or_where_dvc_deleted_them_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(tmp_path)
    found = {"val": ("v", 4.1234), "test": ("t", 1.815)}
    assert read_before(paths, NOW) == {}
    files = {"evaluation.json": {**NOW, "sides": ABOUT}, "metrics/evaluate.json": NUMBERS}
    (paths.reports / "metrics").mkdir(parents=True)
    for name, content in files.items():
        (paths.reports / name).write_text(json.dumps(content))
    assert read_before(paths, NOW) == found
    assert read_before(paths, {"stride_share": 0.5}) == {}
    assert read_before(paths, {**NOW, "packed": True}) == {}

    def cached(content: bytes, ending: str = "") -> str:
        digest = hashlib.md5(content).hexdigest()
        path = tmp_path / ".dvc" / "cache" / "files" / "md5" / digest[:2] / f"{digest[2:]}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return digest

    listed = [
        {"relpath": name, "md5": cached(path.read_bytes())} for name in files if (path := paths.reports / name)
    ]
    digest = cached(json.dumps(listed).encode(), ".dir")
    lock = {"stages": {"evaluate": {"outs": [{"path": "reports", "md5": f"{digest}.dir"}]}}}
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    monkeypatch.setenv("DVC_STAGE", "evaluate")
    paths.reports.rename(tmp_path / "gone")
    assert read_before(paths, NOW) == found
    (tmp_path / "gone").rename(paths.reports)
    (paths.reports / "evaluation.json").write_text('{"sides": 3}')
    assert read_before(paths, NOW) == {}


def test_the_numbers_of_tasks_are_a_line_or_a_table_by_kind() -> None:
    assert list(tasks({"choice_accuracy": 0.5, "b": 1.0})) == ["choice accuracy 0.5000  b 1.0000"]
    by_kind = {"q.exact_match": 0.25, "q.exact_match.sum": 0.5, "q.ended": 1.0, "q.exact_match.last_word": 0.125}
    assert [line.split() for line in tasks(by_kind)] == [
        ["q", "exact", "match", "ended"],
        ["all", "0.2500", "1.0000"],
        ["sum", "0.5000"],
        ["last_word", "0.1250"],
    ]


def test_what_was_scored_is_a_line_for_each_text_of_which_only_a_part_is() -> None:
    assert list(scored(ABOUT)) == []
    part = {"tokens": 12_345, "of": 40_000, "what": "what the assistant says"}
    assert list(scored({"val": {"scored": part}, "test": {}})) == [
        "12,345 of 40,000 tokens of val: what the assistant says",
        "without xz, which would compress all of the text",
    ]
    assert next_commands(["the"], True, chat=True) == "pipeline chat · pipeline compare"
