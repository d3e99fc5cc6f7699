"""The stages, one after the other, on a tiny project."""

import json

import torch
from conftest import Project


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


def test_the_checkpoint_loads_as_the_chapter_loads_it(trained_project: Project) -> None:
    path = trained_project.root / "artifacts" / "checkpoint" / "model_and_optimizer.pth"
    saved = torch.load(path, weights_only=True)
    assert {"model_state_dict", "optimizer_state_dict"} <= set(saved)
