"""What a loss is given beside output and targets: the step, the inputs, and a frozen model to learn from."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import REPOSITORY, Project
from small_run import CONTEXT, assert_same_bits, make_run, weights
from test_docs import blocks
from test_init_from import sets

from pipeline.plugin.components import Loss, ModelOutput
from pipeline.train.loop import train
from pipeline.train.state import TrainState

SEEN: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []


class Sees(Loss):
    """Cross-entropy that notes what it is given."""

    name: ClassVar[str] = "sees"

    def __call__(self, output: ModelOutput, targets: Any, inputs: Any, total_steps: Any, step: Any) -> torch.Tensor:  # type: ignore[override]
        SEEN.append((step, total_steps, inputs, targets))
        return output.cross_entropy(targets)


def test_a_loss_is_given_what_it_has_parameters_for(tmp_path: Path) -> None:
    SEEN.clear()
    run, plain = make_run(tmp_path / "sees", loss=Sees()), make_run(tmp_path / "plain")
    for each in (run, plain):
        train(each, TrainState())
    assert [step for step, *_ in SEEN] == [step for step in range(6) for _ in range(2)]
    for _, total_steps, inputs, targets in SEEN:
        assert (total_steps, inputs.shape) == (6, (2, CONTEXT))
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert_same_bits(weights(run), weights(plain))


# ── a teacher ─────────────────────────────────────────────────────────────────────────────────────

IMPORTS = """
from typing import Annotated, ClassVar
from pydantic import Field
from pipeline.plugin import IGNORED, Loss, hookimpl
"""
HOOK = """
@hookimpl
def register_losses():
    return [Distillation]
"""
CHOSEN = sets("train.loss.name=distillation", "train.loss.distillation={share: 0.0}")
TEACHER = "data/weights/teacher"


def objectives(project: Project) -> list[float]:
    with (project.root / "metrics" / "steps.tsv").open() as file:
        return [float(row["train.objective"]) for row in csv.DictReader(file, delimiter="\t")]


@pytest.fixture
def taught(trained_project: Project) -> Project:
    """A project with the guide's distillation, and its trained model as the teacher."""
    (code,) = [each for each in blocks(REPOSITORY / "docs" / "plugins.md", "python") if "Distillation" in each]
    (trained_project.root / "plugins" / "losses" / "distillation.py").write_text(IMPORTS + code + HOOK)
    shutil.copytree(trained_project.root / "artifacts" / "checkpoint", trained_project.root / TEACHER)
    return trained_project


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(taught: Project) -> None:
    taught.succeed("train", *CHOSEN, *sets(f"train.init_from={TEACHER}", "train.precision=fp32"))
    assert objectives(taught)[0] == pytest.approx(0, abs=1e-6)
    taught.succeed("train", *CHOSEN, *sets("train.precision=fp32"))
    assert objectives(taught)[0] > 1e-3


def test_the_teacher_belongs_to_the_run_and_what_cannot_teach_is_one_line(taught: Project) -> None:
    taught.succeed("train", *CHOSEN)
    assert "already complete" in taught.succeed("train", *CHOSEN).out
    taught.succeed("train", *sets("train.seed=5"))
    shutil.rmtree(taught.root / TEACHER)
    shutil.copytree(taught.root / "artifacts" / "checkpoint", taught.root / TEACHER)
    assert "the loss's teacher" in taught.succeed("train", *CHOSEN).out

    longer = taught.run("train", *CHOSEN, *sets("model.context_length=17"))
    assert "train.loss.distillation.teacher" in longer.err
    assert "model.context_length" in longer.err
    shutil.rmtree(taught.root / TEACHER)
    missing = taught.run("train", *CHOSEN)
    for part in ("train.loss.distillation.teacher", TEACHER, "artifacts/checkpoint"):
        assert part in missing.err
    outside = taught.run("train", *CHOSEN, *sets("train.loss.distillation.teacher=artifacts/checkpoint"))
    assert "data/weights/" in outside.err
    assert {each.code for each in (longer, missing, outside)} == {1}
