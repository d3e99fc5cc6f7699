"""Callbacks at each step: when they are called, what they are given, what becomes of what they return; and the
weights that are evaluated in place of the trained ones."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import Project
from small_run import assert_same_bits, assert_same_run, make_model, make_run, weights
from test_distributed import StopSignalAfter, curve, run_ranks
from test_resume import StopAt

from pipeline.authoring.testing import check_eval_callback
from pipeline.core.errors import Interrupted, PluginError
from pipeline.distributed.ranks import Ranks
from pipeline.plugin.components import EvalCallback, EvaluationEvent, StepEvent
from pipeline.train import callbacks
from pipeline.train.checkpoint_store import to_meta
from pipeline.train.loop import train, train_step
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState

MEASURED = ["step", "tokens", "train.objective", "learning_rate", "grad_norm"]


class Average(EvalCallback):
    """Evaluates a moving average of the weights, and adds a little noise to the gradients; counts its steps."""

    name: ClassVar[str] = "average"

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        event.memory["evaluations"] = event.memory.get("evaluations", 0) + 1
        return {"average.steps": float(event.memory.get("steps", 0))}

    def before_update(self, event: StepEvent) -> dict[str, float]:
        for parameter in event.model.parameters():
            assert parameter.grad is not None
            parameter.grad.add_(torch.randn_like(parameter.grad), alpha=1e-3)
        return {"average.evaluations": float(event.memory.get("evaluations", 0))}

    def after_step(self, event: StepEvent) -> None:
        event.memory["steps"] = event.memory.get("steps", 0) + 1
        average = event.memory.setdefault("weights", {})
        for name, weight in event.model.named_parameters():
            average[name] = average[name].lerp(weight, 0.3) if name in average else weight.detach().clone()

    def eval_weights(self, event: StepEvent) -> dict[str, torch.Tensor] | None:
        return event.memory.get("weights")


def test_two_callbacks_cannot_both_give_the_evaluated_weights(project: Project) -> None:
    for name in ("one", "two"):
        (project.root / "plugins" / "eval_callbacks" / f"{name}.py").write_text(
            f"""
from typing import ClassVar
from pipeline.plugin import EvalCallback, hookimpl

class Giver(EvalCallback):
    \"\"\"Gives the weights that are evaluated.\"\"\"

    name: ClassVar[str] = "{name}"

    def eval_weights(self, event):
        return None

@hookimpl
def register_eval_callbacks():
    return [Giver]
"""
        )
    for stage in ("tokenize", "split"):
        project.succeed(stage)
    result = project.run("train", "--set", "train.eval_callbacks.use=[one,two]")
    assert result.code == 1
    assert all(part in result.err for part in ("train.eval_callbacks.use", "one and two", "eval_weights"))


def test_the_example_keeps_the_contract() -> None:
    check_eval_callback(Average)


class Order(EvalCallback):
    """Notes the gradient that it is given, and what it becomes."""

    name: ClassVar[str] = "order"

    def before_update(self, event: StepEvent) -> dict[str, float]:
        event.memory.setdefault("metrics", []).append(sorted(event.metrics))
        for parameter in event.model.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(1.0)
        return {"order.before": float(event.step)}

    def after_step(self, event: StepEvent) -> dict[str, float]:
        event.memory["metrics"].append(sorted(event.metrics))
        gradients = [each.grad for each in event.model.parameters() if each.grad is not None]
        return {"order.clipped": float(torch.nn.utils.get_total_norm(gradients))}


def test_a_callback_changes_gradients_before_they_are_clipped_and_sees_them_after(tmp_path: Path) -> None:
    run, state = make_run(tmp_path, callbacks=(Order(),), grad_clip=0.5, log_every=1), TrainState()
    train_step(run, state)
    (row,) = state.steps
    assert row["grad_norm"] == pytest.approx(run.model.architecture.parameter_count**0.5, rel=1e-5)
    assert row["order.clipped"] == pytest.approx(0.5, rel=1e-5)
    assert list(row) == [*MEASURED, "order.before", "order.clipped"]
    assert (row["step"], row["order.before"]) == (1, 1)
    assert state.memory["order"]["metrics"] == [
        ["step"],
        ["grad_norm", "learning_rate", "order.before", "step", "train.objective"],
    ]


def test_without_step_methods_no_event_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(EvalCallback):
        """Nothing at a step."""

        name: ClassVar[str] = "plain"

        def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
            return {"plain": 1.0}

    monkeypatch.setattr(callbacks, "StepEvent", None)
    run, state = make_run(tmp_path, callbacks=(Plain(),)), TrainState()
    train(run, state)
    assert [row["plain"] for row in state.history] == [1.0] * 4
    with pytest.raises(PluginError, match="'order', in before_update of step 1"):
        train_step(make_run(tmp_path, callbacks=(Order(),)), TrainState())


class Reads(EvalCallback):
    """Reads what every event offers, and draws random numbers."""

    name: ClassVar[str] = "reads"

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        return self._read(event)

    def after_step(self, event: StepEvent) -> dict[str, float]:
        assert all(event.full(each) is each for each in event.model.parameters())
        return self._read(event) | {"reads.random": torch.rand(()).item()}

    @staticmethod
    def _read(event: Any) -> dict[str, float]:
        ids = list(event.batches("val"))
        nats = [event.loss(each) for each in ids]
        assert event.model(ids[0][:, :-1]).logits.shape[:2] == nats[0].shape
        assert not event.model.training
        with pytest.raises(ValueError, match="'test'"):
            next(event.batches("test"))
        for each, targets in zip(ids, event.targets("val"), strict=True):
            assert torch.equal(each[:, 1:], targets)
        return {"reads.loss": float(torch.cat([each.flatten() for each in nats]).mean())}


def test_events_offer_data_losses_and_the_model_and_disturb_nothing(tmp_path: Path) -> None:
    model = {"model": make_model(dropout=0.3)}
    run, state = make_run(tmp_path / "reads", callbacks=(Reads(),), log_every=1, **model), TrainState()
    train(run, state)
    for row in state.history:
        assert row["reads.loss"] == pytest.approx(row["val.loss"], rel=1e-6)
    assert len({row["reads.random"] for row in state.steps}) == 6
    plain, plain_state = make_run(tmp_path / "plain", model=make_model(dropout=0.3)), TrainState()
    train(plain, plain_state)
    assert_same_bits(weights(run), weights(plain))


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"after_step": lambda self, event: {"grad_norm": 1.0}}, "'grad_norm', which is already recorded"),
        ({"before_update": lambda self, event: {"tokens": 1.0}}, "'tokens', which is already recorded"),
        ({"after_step": lambda self, event: 3}, "must return a dict"),
        ({"after_step": lambda self, event: event.memory.update(it=Path())}, "memory holds a PosixPath"),
        ({"after_step": lambda self, event: {"a": 1.0}, "records_only": True}, "records_only"),
        ({"eval_weights": lambda self, event: 3}, "must return a dict of tensors"),
        ({"eval_weights": lambda self, event: {"no": torch.zeros(1)}}, "'no'"),
        ({"eval_weights": lambda self, event: {"norm.weight": 1.0}}, "a float for 'norm.weight'"),
        ({"eval_weights": lambda self, event: {"norm.weight": torch.zeros(3)}}, r"\[3\] for 'norm.weight'"),
    ],
)
def test_what_a_step_method_must_not_return_is_one_line(tmp_path: Path, odd: dict[str, Any], says: str) -> None:
    records_only = {"records_only": odd.pop("records_only", False)}
    kind = type("Odd", (EvalCallback,), {"__doc__": "Odd.", "__module__": __name__, "name": "odd", **odd})
    for name, value in records_only.items():
        setattr(kind, name, value)
    with pytest.raises(PluginError, match=f"(?s)'odd'.*test_step_callbacks.py.*{says}"):
        train(make_run(tmp_path, callbacks=(kind(),)), TrainState())


# ── the weights that are evaluated and published ──────────────────────────────────────────────────


def test_the_average_is_evaluated_and_published_and_training_continues_with_its_own_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path / "average", callbacks=(Average(),), **{"evaluation.windows": 99})
    state = TrainState()
    train(run, state)
    average = state.memory["average"]["weights"]
    trained = weights(run)
    assert not any(torch.equal(tensor, trained[name]) for name, tensor in average.items())
    with callbacks.evaluation_weights(run, state):
        assert_same_bits({name: weights(run)[name] for name in average}, average)
    assert_same_bits(weights(run), trained)
    assert state.history[-1]["val.loss"] == pytest.approx(state.final["last"]["loss"], rel=1e-6)
    best = {name: state.best_weights[name] for name in average}
    assert state.best_step == 6
    assert_same_bits(best, average)


# ── resume ────────────────────────────────────────────────────────────────────────────────────────


def start_or_resume(folder: Path, seed: int, **changes: Any) -> tuple[TrainingRun, TrainState]:
    run = make_run(folder, model=make_model(seed, 0.3), callbacks=(Average(),), log_every=1, **changes)
    saved = run.saver.store.load()
    state = TrainState.restore(saved, run) if saved else TrainState()
    train(run, state)
    return run, state


@pytest.mark.faults
def test_a_run_with_a_stateful_step_callback_resumes_to_the_same_bits(tmp_path: Path) -> None:
    never = StopAt(time=10**9)
    whole = start_or_resume(tmp_path / "whole", 0, stop=never)
    assert len(whole[1].steps) == 6
    for time in range(0, never.asked, 9):
        with pytest.raises(Interrupted):
            start_or_resume(tmp_path / str(time), 0, stop=StopAt(time=time))
        assert_same_run(start_or_resume(tmp_path / str(time), 7), whole)
        live = (tmp_path / str(time) / "run" / "steps.tsv").read_text()
        assert live == (tmp_path / "whole" / "run" / "steps.tsv").read_text()


def averaged(ranks: Ranks, folder: Path) -> None:
    """Stops runs on two ranks, goes on, and compares with those that were not stopped, to the bit."""
    for strategy in ("ddp", "fsdp"):
        ends = []
        for place, stops in ((folder / f"{strategy}-straight", ()), (folder / f"{strategy}-stopped", (25, None))):
            for stop in stops or (None,):
                run = curve(
                    place, ranks, strategy=strategy, total_windows=80, every=3, callbacks=(Average(),), dropout=0.3,
                    log_every=1, stop=StopSignalAfter(stop) if stop else None,
                )  # fmt: skip
                saved = run.saver.store.load() if ranks.is_rank0 else None
                told = ranks.on_rank0(lambda saved=saved: to_meta(saved) if saved else None)
                saved = saved if ranks.is_rank0 else told
                state = TrainState.restore(saved, run) if saved else TrainState()
                if stop:
                    with pytest.raises(Interrupted):
                        train(run, state)
                else:
                    train(run, state)
            memory = run.parallel.full(state.memory["average"]["weights"])
            ends.append((run.parallel.full(run.model.state_dict()), memory, state.steps, state.history))
            assert state.memory["average"]["evaluations"] == 5
        if ranks.is_rank0:
            assert_same_bits(ends[0], ends[1])
        with callbacks.evaluation_weights(run, state):
            given = run.parallel.full(run.model.state_dict())
        if ranks.is_rank0:
            assert_same_bits({name: given[name] for name in memory}, memory)


@pytest.mark.faults
@pytest.mark.long
def test_a_stateful_step_callback_resumes_to_the_same_bits_on_two_ranks(tmp_path: Path) -> None:
    run_ranks(2, averaged, tmp_path)


# ── metrics/steps.tsv ─────────────────────────────────────────────────────────────────────────────


def test_every_so_many_steps_a_row_is_kept_and_no_bit_changes(tmp_path: Path) -> None:
    ended = {}
    for every in (0, 1, 4):
        run, state = make_run(tmp_path / str(every), log_every=every, total_windows=40), TrainState()
        train(run, state)
        ended[every] = run
        assert [row["step"] for row in state.steps] == {0: [], 1: [*range(1, 11)], 4: [1, 4, 8]}[every]
        assert (tmp_path / str(every) / "run" / "steps.tsv").is_file() == bool(every)
    assert list(state.steps[0]) == MEASURED
    assert state.steps[-1]["tokens"] == 8 * 4 * 8
    assert_same_bits(weights(ended[0]), weights(ended[1]))
    assert_same_bits(weights(ended[0]), weights(ended[4]))


def test_the_rows_of_steps_are_published_and_do_not_belong_to_the_identity(trained_project: Project) -> None:
    path = trained_project.root / "metrics" / "steps.tsv"
    rows = list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))
    assert [row["step"] for row in rows] == ["1"]
    assert float(rows[0]["train.objective"]) > 4
    assert (
        path.read_bytes()
        == (trained_project.root / "artifacts" / "checkpoint" / "metrics" / path.name).read_bytes()
    )
    result = trained_project.succeed("train", "--set", "train.log_every=0")
    assert "already complete" in result.out
    assert [row["step"] for row in csv.DictReader(path.read_text().splitlines(), delimiter="\t")] == ["1"]
