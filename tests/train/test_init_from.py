"""Training that begins with weights: those of an export or a checkpoint, and what belongs to such a run."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Project

import pipeline.train.loop as loop
from pipeline.train.pending import Pending
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState

ARCHITECTURES = {
    "gpt2": ["model.name=gpt2"],
    "modern": ["model.name=modern"],
    "llama": ["model.name=llama", "model.llama.n_kv_heads=1"],
}
WHOLE = ["train.evaluation.windows=1000", "train.precision=fp32"]
FROM = "train.init_from=data/weights/there"


def sets(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def losses(project: Project) -> list[float]:
    with (project.root / "metrics" / "history.tsv").open() as file:
        return [float(row["val.loss"]) for row in csv.DictReader(file, delimiter="\t")]


def weights(project: Project) -> dict[str, torch.Tensor]:
    path = project.root / "artifacts" / "checkpoint" / "model_and_optimizer.pth"
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model_state_dict"]
    return found


def kept(project: Project, name: str = "artifacts/checkpoint") -> Path:
    """A copy of what a stage wrote, in data/weights/there."""
    return Path(shutil.copytree(project.root / name, project.root / "data" / "weights" / "there"))


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(each, marks=() if each == "llama" else pytest.mark.long) for each in ARCHITECTURES],
)
def test_a_run_starts_from_the_export_of_another_at_its_loss(trained_project: Project, architecture: str) -> None:
    settings = [*ARCHITECTURES[architecture], *WHOLE]
    trained_project.succeed("train", *sets(*settings))
    first = losses(trained_project)
    trained_project.succeed("export", *sets(*settings, "export.weights=last"))
    kept(trained_project, "artifacts/export")
    shutil.rmtree(trained_project.root / "artifacts" / "export")
    out = trained_project.succeed("train", *sets(*settings, FROM, "train.optimizer.adamw.lr=0.01")).out
    assert "weights  pretrained, from data/weights/there" in out
    second = losses(trained_project)
    assert second[0] == pytest.approx(first[-1], abs=1e-6)
    assert second[-1] < second[0] - 0.01


def test_a_run_starts_from_a_checkpoint_on_other_texts(trained_project: Project) -> None:
    kept(trained_project)
    for path in sorted((trained_project.root / "data" / "raw").iterdir())[:10]:
        path.write_text(f"in {path.stem} we listen to it. " * 100)
    for stage in ("tokenize", "split"):  # which train a tokenizer of its own on those texts
        trained_project.succeed(stage)
    refused = trained_project.run("train", *sets(FROM))
    assert refused.code == 1
    assert (
        "set tokenize.tokenizer.name: file and tokenize.tokenizer.file.path: data/weights/there/tokenizer.json"
        in refused.err
    )
    file = ["tokenize.tokenizer.name=file", "tokenize.tokenizer.file.path=data/weights/there/tokenizer.json"]
    file.append("tokenize.tokenizer.chat_template=chatml")  # whose special tokens the weights do not know
    for stage in ("tokenize", "split"):
        trained_project.succeed(stage, *sets(*file))
    assert "nothing found that would stop the run" in trained_project.succeed("check", *sets(*file, FROM)).out
    out = trained_project.succeed("train", *sets(*file, FROM)).out
    assert "from data/weights/there; new, at the mean of all: <|im_start|>, <|im_end|>" in out
    found = losses(trained_project)
    assert found[-1] < found[0]


def test_an_interrupted_run_resumes_to_the_same_bits_and_other_weights_start_another(
    trained_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = kept(trained_project)
    trained_project.succeed("train", *sets(FROM))
    whole = weights(trained_project)
    trained_project.succeed("clean")
    step = loop.take_step

    def dies(run: TrainingRun, state: TrainState, pending: Pending) -> None:
        if state.step == 4:
            raise KeyboardInterrupt
        step(run, state, pending)

    monkeypatch.setattr(loop, "take_step", dies)
    assert trained_project.run("train", *sets(FROM, "runtime.save_seconds=0")).code == 130
    monkeypatch.setattr(loop, "take_step", step)
    assert "resuming from step 4" in trained_project.succeed("train", *sets(FROM)).out
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(trained_project).items())
    shutil.rmtree(there)
    kept(trained_project)
    out = trained_project.succeed("train", *sets(FROM)).out
    assert re.search("starts over.*: the pretrained weights\n", out)


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.long)])
def test_several_processes_begin_with_the_same_weights(trained_project: Project, strategy: str) -> None:
    kept(trained_project)
    settings = [*WHOLE, FROM]
    trained_project.succeed("train", *sets(*settings))
    alone, end = losses(trained_project), weights(trained_project)
    trained_project.succeed("clean")
    trained_project.succeed("train", *sets(*settings, "runtime.processes=2", f"runtime.strategy={strategy}"))
    assert losses(trained_project) == pytest.approx(alone, abs=1e-5)
    for name, tensor in weights(trained_project).items():
        torch.testing.assert_close(tensor, end[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_different_model_is_reported_in_one_line(trained_project: Project, command: str) -> None:
    kept(trained_project)
    result = trained_project.run(command, *sets(FROM, "model.n_layers=3", "model.n_heads=4"))
    assert result.code == 1
    told = (
        "train.init_from: params.yaml describes another model than data/weights/there: "
        "set model.n_layers: 2, model.n_heads: 2\n"
    )
    assert told in result.err + result.out
    assert result.err.count("\n") == 1
