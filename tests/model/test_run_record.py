"""What made a checkpoint: its record is read or refused, and what has changed since is said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Project

from pipeline.core.errors import CheckpointError
from pipeline.core.files import write_manifest
from pipeline.model.run_record import SECTIONS, RunRecord, read_record

RECORD: dict[str, Any] = {
    "params": {
        "tokenize": {"corpus": {"name": "files", "files": {"separator": ""}}},
        "split": {"val": 0.05},
        "model": {"dropout": 0.0},
        "train": {"optimizer": {"name": "muon", "muon": {"lr": 0.02}}, "eval_callbacks": {"use": []}},
    },
    "data": "ab" * 32,
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "identity": "0123456789abcdef",
}


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**RECORD, "more": "of a later version"}))
    assert read_record(tmp_path) == RunRecord(**RECORD)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "missing"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "params"),
        (json.dumps({**RECORD, "params": {**RECORD["params"], "model": 3}}), "params.model"),
        (json.dumps({**RECORD, "params": {"train": {}}}), "tokenize, split, model"),
        (json.dumps({**RECORD, "versions": {"torch": 2}}), "versions.torch"),
        (json.dumps({**RECORD, "data": 1}), "data"),
        (json.dumps({**RECORD, "identity": None}), "identity"),
    ],
)
def test_an_invalid_record_is_one_line(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        read_record(tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path / "run.json") in message
    assert says in message
    assert "pipeline train" in message


def notes(out: str) -> list[str]:
    """The notes about what trained the checkpoint."""
    return [line for line in out.splitlines() if line.startswith("note: ") and "trained this checkpoint" in line]


def test_every_difference_is_named_and_the_checkpoints_values_are_used(trained_project: Project) -> None:
    root = trained_project.root
    trained_project.succeed("train", "--set", "model.dropout=0.25", "--set", "train.optimizer.adamw.lr=0.003")
    record = json.loads((root / "artifacts" / "checkpoint" / "run.json").read_text())
    assert record["params"]["model"]["dropout"] == 0.25
    for stage in ("evaluate", "export"):
        (note,) = notes(trained_project.succeed(stage, "--set", "train.seed=7").out)
        for difference in (
            "model.dropout is 0.0 in params.yaml, 0.25 in the checkpoint",
            "train.optimizer.adamw.lr is 0.002 in params.yaml, 0.003",
            "train.seed is 7 in params.yaml, 1",
        ):
            assert difference in note
        assert note.count("in the checkpoint") == 3
    page = (root / "reports" / "report.html").read_text()
    card = (root / "artifacts" / "export" / "README.md").read_text()
    assert '<th scope="row">dropout</th><td>0.25</td>' in page
    assert '"lr": 0.003' in card
    assert '"lr": 0.002' not in card
    assert json.loads((root / "reports" / "evaluation.json").read_text())["params"] == record["params"]
    assert set(record["params"]) == set(SECTIONS)


def test_what_decides_nothing_is_no_difference(trained_project: Project) -> None:
    settings = (
        "train.optimizer.muon.lr=0.5",
        "runtime.save_seconds=5",
        "train.eval_callbacks.use=[temperature_scaling, sample_text, dvclive]",
        "evaluate.samplers.use=[greedy]",
    )
    result = trained_project.succeed("evaluate", *(part for value in settings for part in ("--set", value)))
    assert notes(result.out) == []


def test_a_callback_that_ends_runs_and_an_extension_are_differences(trained_project: Project) -> None:
    settings = ("train.eval_callbacks.use=[early_stopping, dvclive]", "train.extension.amount=3")
    result = trained_project.succeed("evaluate", *(part for value in settings for part in ("--set", value)))
    (note,) = notes(result.out)
    chosen = '["temperature_scaling", "sample_text"]'
    assert f'train.eval_callbacks.use is ["early_stopping"] in params.yaml, {chosen} in' in note
    assert "train.extension.amount is 3 in params.yaml, 0 in" in note
    assert note.count("in the checkpoint") == 2


def test_other_splits_than_those_trained_on_are_reported(trained_project: Project) -> None:
    trained_project.succeed("split", "--set", "split.seed=9")
    out = trained_project.succeed("evaluate", "--set", "split.seed=9").out
    params, data = notes(out)
    assert "split.seed is 9 in params.yaml, 2 in the checkpoint" in params
    assert "artifacts/splits" in data


@pytest.mark.parametrize(("stage", "output"), [("evaluate", "reports"), ("export", "artifacts/export")])
def test_nothing_is_published_of_a_checkpoint_that_was_replaced_meanwhile(
    trained_project: Project, monkeypatch: pytest.MonkeyPatch, stage: str, output: str
) -> None:
    checkpoint = trained_project.root / "artifacts" / "checkpoint"

    def read_and_replace(folder: Path) -> RunRecord:
        record = read_record(folder)
        about = json.loads((checkpoint / "run.json").read_text())
        (checkpoint / "run.json").write_text(json.dumps({**about, "identity": "another run"}))
        write_manifest(checkpoint)
        return record

    monkeypatch.setattr(f"pipeline.{stage}.stage.read_record", read_and_replace)
    result = trained_project.run(stage, "--set", "export.formats.use=[]")
    assert result.code != 0
    (line,) = result.err.splitlines()
    assert "artifacts/checkpoint was replaced" in line
    assert f"run {stage} again" in line
    assert not (trained_project.root / output).exists()
    assert not (trained_project.root / "metrics" / "evaluate.json").exists()
