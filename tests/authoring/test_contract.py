"""The contract suite accepts every shipped component and refuses each kind of broken one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import REPOSITORY

from pipeline.authoring.testing import (
    Refused,
    check_corpus,
    check_eval_callback,
    check_exporter,
    check_loss,
    check_metric,
    check_optimizer,
    check_sampler,
    check_schedule,
)
from pipeline.commands.check_plugin import tiny_source
from pipeline.export.stage import export_source
from pipeline.model.checkpoint import load_checkpoint
from pipeline.plugin import EvalCallback, Loss, Optimizer, Sampler, StopTraining
from pipeline.plugin.components import KINDS
from pipeline.plugin.registry import Registry

CHECKS: dict[str, Callable[[Any], None]] = {
    "losses": check_loss,
    "optimizers": check_optimizer,
    "schedules": check_schedule,
    "eval_callbacks": check_eval_callback,
    "samplers": check_sampler,
    "metrics": check_metric,
}
SHIPPED = [
    pytest.param(kind, entry.component, id=f"{kind}-{entry.component.name}")
    for kind in CHECKS
    for entry in Registry.load(REPOSITORY / "plugins", [kind]).entries(kind)
]


def test_every_hook_has_a_check_that_is_called_here_and_a_shipped_component() -> None:
    source = Path(__file__).read_text()
    registry = Registry.load(REPOSITORY / "plugins")
    for kind in KINDS.values():
        check = f"check_{kind.singular.replace(' ', '_')}"
        assert f'"{kind.plural}": {check}' in source or f"{check}(entry.component" in source, (
            f"{kind.hook} has no test"
        )
        assert registry.names(kind.plural)


@pytest.mark.parametrize(("kind", "component"), SHIPPED)
def test_shipped_components_keep_the_contract(
    kind: str, component: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # trackers write where they are run
    shutil.copytree(trained / "data" / "tasks", tmp_path / "data" / "tasks")
    CHECKS[kind](component)


def test_options_other_than_the_defaults_keep_it_too() -> None:
    registry = Registry.load(REPOSITORY / "plugins")
    smoothed = {"cross_entropy": {"label_smoothing": 0.1}}
    check_loss(registry.build("losses", "cross_entropy", smoothed, ""))
    check_optimizer(registry.build("optimizers", "adamw", {"adamw": {"plain": True}}, ""))
    check_sampler(registry.build("samplers", "temperature", {"temperature": {"value": 0.0}}, ""))
    check_sampler(registry.build("samplers", "top_k", {"top_k": {"k": 1}}, ""))
    check_sampler(registry.build("samplers", "top_p", {"top_p": {"p": 0.01}}, ""))


def test_shipped_corpora_keep_the_contract(trained: Path) -> None:
    registry = Registry.load(REPOSITORY / "plugins", ["corpora"])
    for entry in registry.entries("corpora"):
        check_corpus(entry.component, trained / "data" / "raw")


def test_shipped_exporters_keep_the_contract(trained: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained / "artifacts" / "checkpoint", "best", torch.device("cpu"))
    source = export_source(checkpoint, (trained / "data" / "raw" / "text-00.txt").read_text())
    registry = Registry.load(REPOSITORY / "plugins", ["exporters"])
    for entry in registry.entries("exporters"):
        folder = tmp_path / entry.component.name
        folder.mkdir()
        check_exporter(entry.component, source, folder)
        shutil.rmtree(folder)
        folder.mkdir()
        if entry.component.name == "gguf":
            with pytest.raises(Refused, match="no form for the family 'modern'"):
                check_exporter(entry.component, tiny_source("modern"), folder)
        elif entry.component.name != "onnx":  # slow: tests/plugins/test_exports.py has it
            check_exporter(entry.component, tiny_source("modern"), folder)


class MeanLoss(Loss):
    """One number for the batch instead of one a target."""

    name: ClassVar[str] = "mean"

    def __call__(self, output: Any, targets: Any) -> Any:
        return output.logits.logsumexp(-1).mean()


class UnmaskedLoss(Loss):
    """Learns from ignored targets."""

    name: ClassVar[str] = "unmasked"

    def __call__(self, output: Any, targets: Any) -> Any:
        return output.logits.logsumexp(-1)


class PaddedLoss(Loss):
    """Counts the head's padding rows as tokens."""

    name: ClassVar[str] = "padded"

    def __call__(self, output: Any, targets: Any) -> Any:
        logits = output.hidden @ output.head_weight.T
        return torch.where(targets == -100, 0.0, logits.logsumexp(-1))


class ForgetfulOptimizer(Optimizer):
    """Leaves the norms out."""

    name: ClassVar[str] = "forgetful"

    def build(self, named_parameters: Any) -> Any:
        return torch.optim.SGD([p for n, p in named_parameters if "norm" not in n], lr=0.1)


class WanderingSampler(Sampler):
    """Adds noise: the draw is not its business."""

    name: ClassVar[str] = "wandering"

    def __call__(self, logits: Any, tokens: Any) -> Any:
        return logits + torch.rand_like(logits)


class EmptySampler(Sampler):
    """Rules every token out."""

    name: ClassVar[str] = "empty"

    def __call__(self, logits: Any, tokens: Any) -> Any:
        return torch.full_like(logits, -torch.inf)


class RevivingSampler(Sampler):
    """Lets tokens back in that another sampler ruled out."""

    name: ClassVar[str] = "reviving"

    def __call__(self, logits: Any, tokens: Any) -> Any:
        return logits.clamp(min=-10)


class MeddlingCallback(EvalCallback):
    """Changes the model that it should look at."""

    name: ClassVar[str] = "meddling"

    def on_evaluation(self, event: Any) -> Any:
        with torch.no_grad():
            next(event.model.parameters()).zero_()
        return {}


class ShadowingCallback(EvalCallback):
    """Returns a number under a name that is taken."""

    name: ClassVar[str] = "shadowing"

    def on_evaluation(self, event: Any) -> Any:
        return {"val.loss": 0.0}


class Recorder(EvalCallback):
    """Claims to record only."""

    name: ClassVar[str] = "recorder"
    records_only: ClassVar[bool] = True

    def on_evaluation(self, event: Any) -> Any:
        return {}


class NumberingRecorder(Recorder):
    """Returns a number all the same."""

    def on_evaluation(self, event: Any) -> Any:
        return {"mine": 1.0}


class ShowingRecorder(Recorder):
    """Adds to the run's samples all the same."""

    def on_evaluation(self, event: Any) -> Any:
        event.show("a text")
        return {}


class StoppingRecorder(Recorder):
    """Ends the run all the same."""

    def on_evaluation(self, event: Any) -> Any:
        raise StopTraining("enough")


def test_the_trackers_only_record() -> None:
    entries = Registry.load(REPOSITORY / "plugins", ["eval_callbacks"]).entries("eval_callbacks")
    recorders = {entry.component.name for entry in entries if entry.component.records_only}  # type: ignore[attr-defined]
    assert recorders == {"dvclive", "mlflow", "tensorboard", "wandb"}
    check_eval_callback(Recorder)


@pytest.mark.parametrize(
    ("check", "component", "rule"),
    [
        (check_loss, MeanLoss, "one number a target"),
        (check_loss, UnmaskedLoss, "ignored target"),
        (check_loss, PaddedLoss, "padding rows"),
        (check_optimizer, ForgetfulOptimizer, "every parameter"),
        (check_sampler, WanderingSampler, "row must not depend|no random choice"),
        (check_sampler, EmptySampler, "keep a token"),
        (check_sampler, RevivingSampler, "ruled out"),
        (check_eval_callback, MeddlingCallback, "must not change the model"),
        (check_eval_callback, ShadowingCallback, "already recorded"),
        (check_eval_callback, NumberingRecorder, "records_only.*no numbers"),
        (check_eval_callback, ShowingRecorder, "records_only.*event.show"),
        (check_eval_callback, StoppingRecorder, "records_only.*not stop"),
    ],
)
def test_broken_components_are_refused(check: Callable[[Any], None], component: Any, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check(component)
