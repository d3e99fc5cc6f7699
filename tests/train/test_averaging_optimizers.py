"""Optimizers that evaluate other weights than they train, and one that is told how long the run is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from small_run import REGISTRY, assert_same_bits, assert_same_run, make_model, make_run, weights
from test_docs import examples
from test_resume import StopAt

from pipeline.authoring.testing import check_optimizer
from pipeline.core.errors import Interrupted
from pipeline.plugin.components import Optimizer
from pipeline.train.callbacks import evaluation_weights
from pipeline.train.loop import train
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState


class Averaged(torch.optim.SGD):
    """SGD whose `eval()` is near a slow copy of the weights; `train()` restores them, but for rounding."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            group["training"] = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert all(group["training"] for group in self.param_groups)
        super().step()
        for parameter in self.param_groups[0]["params"]:
            slow = self.state[parameter].setdefault("slow", parameter.clone())
            slow.lerp_(parameter, 0.1)

    @torch.no_grad()
    def eval(self) -> None:
        for parameter in self._switched(training=False):
            parameter.lerp_(self.state[parameter]["slow"], 0.7)

    @torch.no_grad()
    def train(self) -> None:
        for parameter in self._switched(training=True):
            parameter.lerp_(self.state[parameter]["slow"], 1 - 1 / 0.3)

    def _switched(self, training: bool) -> list[torch.nn.Parameter]:
        """The parameters that are to change, which have been trained."""
        (group,) = self.param_groups
        switches, group["training"] = group["training"] != training, training
        return [each for each in group["params"] if switches and "slow" in self.state[each]]


class Averages(Optimizer):
    """Builds `Averaged`."""

    name: ClassVar[str] = "averages"

    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        return Averaged([each for _, each in named_parameters])


def schedule_free() -> Optimizer:
    pytest.importorskip("schedulefree", reason="the package schedulefree is not installed")
    (built,) = (each() for each in examples("optimizers") if each.name == "schedule_free")
    return built  # type: ignore[no-any-return]


OPTIMIZERS = {"averages": Averages, "schedule_free": schedule_free}


@pytest.fixture(params=OPTIMIZERS)
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Optimizer:
    component, build = OPTIMIZERS[request.param](), REGISTRY.build
    monkeypatch.setattr(
        REGISTRY, "build", lambda plural, *rest: component if plural == "optimizers" else build(plural, *rest)
    )
    return component


def test_it_keeps_the_contract(chosen: Optimizer) -> None:
    check_optimizer(chosen)


def start_or_resume(folder: Path, seed: int, **changes: Any) -> tuple[TrainingRun, TrainState]:
    run = make_run(folder, model=make_model(seed, 0.3), **changes)
    saved = run.saver.store.load()
    state = TrainState.restore(saved, run) if saved else TrainState()
    train(run, state)
    return run, state


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, chosen: Optimizer) -> None:
    never = StopAt(time=10**9)
    whole = start_or_resume(tmp_path / "whole", 0, stop=never)
    for time in range(1, never.asked, 11):
        with pytest.raises(Interrupted):
            start_or_resume(tmp_path / str(time), 0, stop=StopAt(time=time))
        assert_same_run(start_or_resume(tmp_path / str(time), 7), whole)


def test_its_evaluation_weights_are_evaluated_and_training_continues_with_the_others(
    tmp_path: Path, chosen: Optimizer
) -> None:
    """Evaluated at every step or only at the end, it learns the same."""
    often, state = start_or_resume(tmp_path / "often", 0, every=1)
    seldom, _ = start_or_resume(tmp_path / "seldom", 0, every=100)
    assert_same_bits(weights(often), weights(seldom))
    trained = weights(often)
    with evaluation_weights(often, state):
        evaluated = weights(often)
    assert_same_bits(weights(often), trained)
    assert not any(torch.equal(tensor, trained[name]) for name, tensor in evaluated.items())
    assert state.best_step == 6
    assert_same_bits(state.best_weights, evaluated)


def test_an_optimizer_gets_the_steps_of_the_run_without_the_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    class Told(Averages):
        """Notes the steps."""

        def build(self, named_parameters: Any, total_steps: int = 0) -> torch.optim.Optimizer:
            told.append(total_steps)
            return super().build(named_parameters)

    build = REGISTRY.build
    monkeypatch.setattr(
        REGISTRY, "build", lambda plural, *rest: Told() if plural == "optimizers" else build(plural, *rest)
    )
    make_run(tmp_path)
    assert make_run(tmp_path, **{"extension.amount": 8 * 8}).total_steps == 8
    assert told == [6, 6]
