"""The stages, one after the other, on a tiny project."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Project

from pipeline.evaluate.tables import read_units
from pipeline.model import load, load_optimizer
from pipeline.plugin.registry import Registry


def test_the_five_stages_run_and_say_what_they_did(project: Project) -> None:
    outputs = {}
    for stage, wrote in [
        ("tokenize", "artifacts/tokens"),
        ("split", "artifacts/splits"),
        ("train", "artifacts/checkpoint"),
        ("evaluate", "reports/report.html"),
        ("export", "artifacts/export"),
    ]:
        result = project.succeed(stage)
        assert "wrote" in result.out
        assert wrote in result.out
        assert (project.root / wrote).exists()
        outputs[stage] = result.out
    result = project.succeed("generate", "the river")
    assert result.out.startswith("the river")
    metrics = json.loads((project.root / "metrics" / "evaluate.json").read_text())
    assert metrics["val"]["loss"] > 0
    about = json.loads((project.root / "reports" / "evaluation.json").read_text())["sides"]
    assert {"unigram", "xz"} <= set(about["test"]["baselines"])
    documents = read_units((project.root / "reports" / "documents.tsv").read_text())
    for side in ("val", "test"):
        numbers = metrics[side]
        assert set(numbers) == {
            "loss", "perplexity", "bits_per_byte", "accuracy_top5", "calibration_error", "tokens",
        }  # fmt: skip
        assert set(about[side]["interval"]) == {"loss", "perplexity", "bits_per_byte", "accuracy"}
        for name, ends in about[side]["interval"].items():
            assert ends["low"] < {**about[side], **numbers}[name] < ends["high"]
        assert about[side]["accuracy"] <= numbers["accuracy_top5"] <= 1
        assert 0 <= numbers["calibration_error"] <= 1
        nats, tokens = (sum(each[column] for each in documents[side]) for column in (2, 1))
        assert tokens == numbers["tokens"]
        assert nats / tokens == pytest.approx(numbers["loss"], rel=1e-12)
    assert only_numbers(metrics)  # DVC drops or breaks on what is none
    assert "95% over" in outputs["evaluate"]
    assert "pipeline generate" in outputs["evaluate"]


def only_numbers(values: Any) -> bool:
    if isinstance(values, dict):
        return all(only_numbers(each) for each in values.values())
    return type(values) in (int, float) and math.isfinite(values)


@pytest.mark.parametrize("settings", [{}, {"plain": True}])
def test_the_checkpoint_loads_as_the_chapter_loads_it(trained_project: Project, settings: dict[str, bool]) -> None:
    for name, value in settings.items():
        trained_project.succeed("train", "--set", f"train.optimizer.adamw.{name}={value}")
    folder = trained_project.root / "artifacts" / "checkpoint"
    saved = torch.load(folder / "model_and_optimizer.pth", weights_only=True)
    assert zipfile.ZipFile(folder / "model_and_optimizer.pth").testzip() is None  # others read it as a zip file
    model = load(folder, plugins=trained_project.root / "plugins").model
    registry = Registry.load(trained_project.root / "plugins", ["optimizers"])
    adamw = registry.build("optimizers", "adamw", {"adamw": settings}, "train.optimizer")
    optimizer = adamw.build(model.named_parameters())
    model.load_state_dict(saved["model_state_dict"])
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    assert all(torch.equal(value, saved["model_state_dict"][name]) for name, value in model.named_parameters())
    assert all(optimizer.state[parameter]["step"] == saved["step"] for parameter in model.parameters())


def test_what_set_says_otherwise_than_params_yaml_is_noted_where_dvc_records_results(
    trained_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "split",
        "--set",
        "tokenize.corpus.name=files",
        "--set",
        "runtime.threads=1",
        "--set",
        "split.seed=3",
    ]
    assert "note: --set" not in trained_project.call(command).out
    (trained_project.root / ".dvc").mkdir()
    out = trained_project.call(command).out
    assert "params.yaml" in out
    assert "`dvc exp run -S tokenize.corpus.name=files -S split.seed=3`" in out
    assert out.count("note: --set") == 1
    new = trained_project.call(["split", "--set", "split.seed=3", "--set", "train.loss.mine.share=1"]).out
    assert "-S split.seed=3 -S +train.loss.mine.share=1`" in new
    assert "note: --set" not in trained_project.call(["split", "--set", "runtime.threads=1"]).out
    monkeypatch.setenv("DVC_STAGE", "split")
    assert "note: --set" not in trained_project.call(command).out


def test_a_checkpoint_loads_from_any_folder_with_its_projects_plugins(
    trained_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = trained_project.root / "artifacts" / "checkpoint"
    model = load(folder, weights="last").model
    assert load_optimizer(folder, model).state
