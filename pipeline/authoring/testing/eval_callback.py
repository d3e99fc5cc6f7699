"""The contract of an eval callback, and events to test one with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.authoring.testing.toy import (
    TEST_CONTEXT,
    SmallTestModel,
    instance_of,
    keeps_no_state,
    saved_and_loaded,
    weights_of,
)
from pipeline.core.errors import PluginError
from pipeline.plugin.calls import check_numbers
from pipeline.plugin.components import EvalCallback, EvaluationEvent, StepEvent, StopTraining
from pipeline.train.callbacks import RESERVED


def event(**changes: Any) -> EvaluationEvent:
    """An event for tests of `on_evaluation`, at step 10 of 40. `changes` are attributes of EvaluationEvent."""
    values: dict[str, Any] = {
        "metrics": {"step": 10, "epoch": 0.1, "tokens": 1000, "train.loss": 3.0, "val.loss": 3.1},
        "history": (),
        "generate": lambda prompt, max_new_tokens=50, temperature=0.0: prompt + " and on",
        "show": lambda text: None,
    }
    return EvaluationEvent(**_with_defaults(values | changes))


def step_event(**changes: Any) -> StepEvent:
    """An event for tests of step methods, at step 10 of 40. `changes` are attributes of StepEvent. The default is a
    small model with gradients."""
    values: dict[str, Any] = {
        "metrics": {"step": 10, "train.objective": 3.0, "learning_rate": 1e-3, "grad_norm": 1.0},
        "full": lambda tensor: tensor,
    }
    given = _with_defaults(values | changes)
    if "model" not in changes:
        given["model"].differentiate()
    return StepEvent(**given)


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Adds the attributes that all events have."""
    model = values.get("model", SmallTestModel())

    def batches(side: str) -> Iterator[torch.Tensor]:
        if side not in ("train", "val"):
            raise ValueError(f"there is no split {side!r}: train or val")
        generator = torch.Generator().manual_seed(len(side))
        return (torch.randint(11, (rows, TEST_CONTEXT + 1), generator=generator) for rows in (4, 4, 1))

    loss = getattr(model, "loss", lambda ids: torch.full((len(ids), ids.shape[1] - 1), 3.0, dtype=torch.float64))
    read = values.get("batches", batches)
    shared = {
        "step": 10, "total_steps": 40, "model": model, "batches": batches, "loss": loss, "memory": {},
        "targets": lambda side: (ids[:, 1:] for ids in read(side)),
    }  # fmt: skip
    return shared | values


@keeps_no_state
def check_eval_callback(component: type[EvalCallback] | EvalCallback) -> None:
    """Checks a callback: it returns finite numbers; its memory has only plain values and tensors, and its results
    depend only on the memory and the events; only the step methods change weights or gradients.

    A callback with `records_only` must not return numbers, show text, stop the run, or change anything.
    """
    callback = instance_of(component)
    if callback.has("on_evaluation"):
        _check_on_evaluation(callback)
    if any(map(callback.has, ("before_update", "after_step", "eval_weights"))):
        trained, memory = _train_with(callback, resumes=False)
        again, restored = _train_with(callback, resumes=True)
        for (name, one), other in zip(trained.items(), again.values(), strict=True):
            assert torch.equal(one, other), f"{name}: resuming from the saved memory must be bit-identical"
        assert str(memory) == str(restored), "the memory must be the same after resuming"


def _check_on_evaluation(callback: EvalCallback) -> None:
    torch.manual_seed(0)
    net, memory, shown = SmallTestModel(), {}, []  # type: ignore[var-annotated]
    before = weights_of(net)
    history: list[dict[str, float]] = []
    for number, loss in enumerate((3.0, 2.5, 2.4, 2.6, 2.3)):
        metrics = {
            "step": 10 * number, "tokens": 1000 * number, "epoch": 0.1 * number,
            "learning_rate": 1e-3, "grad_norm": 1.0,
            "train.loss": loss, "train.objective": loss, "val.loss": loss + 0.1,
            "val.perplexity": math.exp(loss + 0.1), "val.bits_per_byte": 0.5 * loss,
        }  # fmt: skip
        given = event(
            step=10 * number,
            metrics=dict(metrics),
            history=tuple(history),
            show=shown.append,
            model=net,
            memory=memory,
        )
        try:
            numbers = callback.on_evaluation(given)
        except StopTraining:
            assert not callback.records_only, "a callback with records_only must not stop the run"
            break
        _check_numbers("on_evaluation", numbers, metrics, callback)
        history.append({**metrics, **numbers})
        memory = saved_and_loaded(memory)  # saved and restored between evaluations
    assert all(isinstance(text, str) for text in shown), "event.show takes a string"
    assert not (callback.records_only and shown), "a callback with records_only must not call event.show"
    _assert_unchanged(net, before, "a callback must not change the model")


def _check_numbers(method: str, numbers: Any, known: dict[str, float], callback: EvalCallback) -> None:
    try:
        check_numbers(numbers, method)
    except PluginError as error:
        raise AssertionError(error) from error
    assert not (callback.records_only and numbers), "a callback with records_only must return no numbers"
    for name in numbers:
        assert name not in known.keys() | RESERVED, f"{name} is already recorded: choose another name"


def _train_with(callback: EvalCallback, resumes: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Trains six steps of SGD with the callback's step methods.

    Returns the weights to evaluate and the memory. With `resumes`, the memory is saved and restored after each
    step.
    """
    torch.manual_seed(0)
    net, memory = SmallTestModel(), {}  # type: ignore[var-annotated]
    known: dict[str, float] = {}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def call(method: str) -> Any:
        if not callback.has(method):
            return None
        weights, gradients = (
            weights_of(net),
            [each.grad.clone() for each in net.parameters() if each.grad is not None],
        )
        with torch.no_grad():
            given = step_event(step=step, total_steps=6, metrics=dict(known), model=net, memory=memory)
            result = getattr(callback, method)(given)
        if callback.records_only or method == "eval_weights":
            _assert_unchanged(net, weights, f"{method} must not change the model")
        if callback.records_only:
            after = [each.grad for each in net.parameters() if each.grad is not None]
            assert all(map(torch.equal, after, gradients)), "a callback with records_only must not change gradients"
        if method != "eval_weights":
            _check_numbers(method, {} if result is None else result, known, callback)
            known.update(result or {})
        return result

    for step in range(1, 7):
        optimizer.zero_grad()
        loss = net.differentiate()
        known = {"step": step}
        torch.manual_seed(step)
        call("before_update")
        for name, parameter in net.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), f"{name}: its gradient must be finite"
        optimizer.step()
        known |= {"train.objective": loss, "learning_rate": 0.1, "grad_norm": 1.0}
        torch.manual_seed(step)
        call("after_step")
        if resumes:
            memory = saved_and_loaded(memory)
    weights = weights_of(net)
    for name, tensor in (call("eval_weights") or {}).items():
        assert name in weights, f"eval_weights returned {name!r}, which is not a parameter of the model"
        assert tensor.shape == weights[name].shape, f"eval_weights: {name} must be {tuple(weights[name].shape)}"
        weights[name] = tensor.clone()
    return weights, saved_and_loaded(memory)


def _assert_unchanged(net: SmallTestModel, before: dict[str, torch.Tensor], rule: str) -> None:
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name}: {rule}"
