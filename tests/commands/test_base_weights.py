"""The preset chat-tiny keeps the default run's checkpoint in data/weights/base, and refuses any other."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from conftest import Project
from made_library import make_library

from pipeline.commands.base_weights import keep_base
from pipeline.core.errors import CheckpointError
from pipeline.core.files import MANIFEST, sha256, verify_manifest, write_manifest
from pipeline.core.paths import Paths
from pipeline.model.checkpoint import BEST, LAST
from pipeline.model.pretrained import Pretrained
from pipeline.params.presets import default_values, write_preset
from pipeline.params.reader import load_params


@pytest.fixture
def default_run(trained_project: Project) -> Paths:
    """A project whose checkpoint says that the default run made it."""
    paths = Paths(trained_project.root)
    record(paths)
    return paths


def record(paths: Paths, **changes: Any) -> None:
    """Writes into run.json the shipped params; `changes` are values of sections, such as split={"seed": 3}."""
    values = json.loads((paths.checkpoint / "run.json").read_text())
    values["params"] = default_values()
    for section, changed in changes.items():
        values["params"][section] |= changed
    (paths.checkpoint / "run.json").write_text(json.dumps(values))
    (paths.checkpoint / MANIFEST).unlink()
    write_manifest(paths.checkpoint)


def test_the_base_is_what_training_begins_with(default_run: Paths) -> None:
    told = keep_base(default_run)
    assert told.startswith("copied")
    assert "artifacts/checkpoint" in told
    assert "data/weights/base" in told
    base = default_run.weights / "base"
    assert LAST not in verify_manifest(base, "")  # the optimizer's state is two thirds of a checkpoint
    for file in base.iterdir():
        if file.name != MANIFEST:
            assert sha256(file) == sha256(default_run.checkpoint / file.name)
    assert Pretrained.at(default_run.root, "data/weights/base").file == base / BEST
    assert {each.name for each in default_run.weights.iterdir()} == {"base"}


def test_a_base_is_kept_unless_a_new_one_is_asked_for(default_run: Paths) -> None:
    keep_base(default_run)
    kept = sha256(default_run.weights / "base" / MANIFEST)
    record(default_run, model={"dropout": 0.1})  # another run of the same kind
    assert keep_base(default_run).startswith("kept")
    assert sha256(default_run.weights / "base" / MANIFEST) == kept
    assert keep_base(default_run, again=True).startswith("copied")
    assert sha256(default_run.weights / "base" / MANIFEST) != kept


def test_a_checkpoint_of_another_kind_is_refused(default_run: Paths) -> None:
    record(default_run, split={"seed": 3}, tokenize={"corpus": {"name": "python_questions"}})
    with pytest.raises(
        CheckpointError, match=r"^artifacts/checkpoint .*python_questions.*split.seed: 3.*preset tiny"
    ):
        keep_base(default_run)
    assert not (default_run.weights / "base").exists()


def test_a_damaged_checkpoint_is_not_copied(default_run: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray((default_run.checkpoint / BEST).read_bytes())
    data[len(data) // 2] ^= 1
    (default_run.checkpoint / BEST).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"best\.pth.*preset tiny"):
        keep_base(default_run)
    assert not (default_run.weights / "base").exists()


def test_a_damaged_base_is_refused(default_run: Paths) -> None:
    keep_base(default_run)
    (default_run.weights / "base" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"data/weights/base/config\.json.*remove it"):
        keep_base(default_run)


def test_the_preset_is_not_written_without_a_base(project: Project) -> None:
    before = (project.root / "params.yaml").read_bytes()
    refused = project.call(["preset", "chat-tiny"])
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert "artifacts/checkpoint is missing" in refused.err
    assert (project.root / "params.yaml").read_bytes() == before
    assert project.call(["preset", "tiny", "--new-base"]).code == 2


def test_its_questions_are_about_what_the_default_run_held_out(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    write_preset("tiny", path)
    base = load_params(path)
    write_preset("chat-tiny", path)
    tuned = load_params(path)
    options = tuned.tokenize.corpus.options["python_questions"]
    assert {key: options[key] for key in ("seed", "val", "test")} == {
        key: getattr(base.split, key) for key in ("seed", "val", "test")
    }
    assert (base.split.by, tuned.split.by) == ("document", "predefined")
    assert tuned.model.model_copy(update={"dropout": 0.2, "document_mask": False}) == base.model


def test_chat_tiny_runs_from_the_default_run_in_small(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "library").mkdir()
    library, get_path = str(make_library(tmp_path / "library")), sysconfig.get_path
    monkeypatch.setattr(sysconfig, "get_path", lambda name: library if name == "stdlib" else get_path(name))
    small = ["train.budget.amount=1", "train.evaluation.windows=1", "runtime.threads=1", "runtime.compile=false"]
    settings = [part for value in small for part in ("--set", value)]
    stages = ("tokenize", "split", "train")
    for stage in stages:
        assert project.call([stage, *settings, "--set", "train.eval_callbacks.use=[]"]).code == 0
    written = project.call(["preset", "chat-tiny"])
    assert written.code == 0, written.err
    assert "copied   artifacts/checkpoint (step " in written.out
    for stage in stages:
        result = project.call([stage, *settings])
        assert result.code == 0, result.err
    assert "from data/weights/base" in result.out
    again = project.call(["preset", "chat-tiny", "--new-base"])  # the tuned model is no base
    assert "python_questions" in again.err
    assert project.call(["preset", "chat-tiny"]).out.startswith("kept")
