"""The stages, one after the other, on a tiny project."""

import json
import zipfile

import pytest
import torch
from conftest import Project

from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.plugin.registry import Registry


def test_the_five_stages_run_and_say_what_they_did(project: Project) -> None:
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
    result = project.succeed("generate", "the river")
    assert result.out.startswith("the river")
    metrics = json.loads((project.root / "metrics" / "evaluate.json").read_text())
    assert metrics["val"]["loss"] > 0
    assert {"unigram", "xz"} <= set(metrics["test"]["baselines"])


@pytest.mark.parametrize("settings", [{}, {"plain": True}])
def test_the_checkpoint_loads_as_the_chapter_loads_it(trained_project: Project, settings: dict[str, bool]) -> None:
    for name, value in settings.items():
        trained_project.succeed("train", "--set", f"train.optimizer.adamw.{name}={value}")
    folder = trained_project.root / "artifacts" / "checkpoint"
    saved = torch.load(folder / "model_and_optimizer.pth", weights_only=True)
    assert zipfile.ZipFile(folder / "model_and_optimizer.pth").testzip() is None  # others read it as a zip file
    model = GPT(GPTConfig(**json.loads((folder / "config.json").read_text())))
    registry = Registry.load(trained_project.root / "plugins", ["optimizers"])
    adamw = registry.build("optimizers", "adamw", {"adamw": settings}, "train.optimizer")
    optimizer = adamw.build(model.named_parameters())
    model.load_state_dict(saved["model_state_dict"])
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    assert all(torch.equal(value, saved["model_state_dict"][name]) for name, value in model.named_parameters())
    assert all(optimizer.state[parameter]["step"] == saved["step"] for parameter in model.parameters())
