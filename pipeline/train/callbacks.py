"""Calls the eval callbacks: in each step, for the weights to evaluate, and after each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch

from pipeline.core.console import say
from pipeline.core.errors import PluginError
from pipeline.data.batches import EvaluationWindow
from pipeline.data.masked import MaskedIds
from pipeline.data.masked import Targets as Ids
from pipeline.model.architecture import LanguageModel, checked_forward
from pipeline.model.device import device_of
from pipeline.model.generate import generate
from pipeline.model.scoring import evaluating, score_tokens
from pipeline.plugin.calls import calling, check_numbers, label
from pipeline.plugin.components import (
    CALLBACK_METHODS,
    IGNORED,
    EvalCallback,
    EvaluationEvent,
    StepEvent,
    StopTraining,
)
from pipeline.train.components import check_plain, has_modes, set_mode
from pipeline.train.parallel import map_named, map_tensors
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState, seed_generators

# ── in a step ─────────────────────────────────────────────────────────────────────────────────────


def call_step_callbacks(method: str, run: TrainingRun, state: TrainState, row: dict[str, float]) -> None:
    """Calls `method` ("before_update" or "after_step") of the callbacks that have it, on every rank, and adds the
    numbers that they return to `row`, the step's row of metrics/steps.tsv.

    Raises:
        PluginError: a callback raises, or returns something else than new numbers.
    """
    step = int(row["step"])
    for callback in run.components.callbacks_with(method):
        with calling(callback, when=f"in {method} of step {step}"), _isolated(run):
            seed_generators(run.params.seed, step, 1 + run.parallel.ranks.rank * run.parallel.sharded)
            numbers = getattr(callback, method)(_step_event(run, state, callback, step, row))
            _record({} if numbers is None else numbers, callback, row, state)


@contextmanager
def evaluation_weights(run: TrainingRun, state: TrainState) -> Iterator[None]:
    """Inside the block, the model has the weights to evaluate and publish: those of the optimizer's `eval()` mode
    or of a callback's `eval_weights`. Restores the trained weights exactly. All ranks must enter it."""
    with_weights = run.components.callbacks_with("eval_weights")
    if not with_weights and not has_modes(run.optimizer):
        yield
        return
    trained = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    set_mode(run.optimizer, "eval")
    try:
        for callback in with_weights:
            with calling(callback, when=f"in eval_weights of step {state.step}"), _isolated(run):
                weights = callback.eval_weights(_step_event(run, state, callback, state.step, {}))
                run.parallel.overwrite(_checked_weights(weights or {}, callback, trained))
        yield
    finally:
        set_mode(run.optimizer, "train")
        run.parallel.overwrite(trained)  # train() alone would restore them only approximately


@contextmanager
def _isolated(run: TrainingRun) -> Iterator[None]:
    """Eval mode and no gradients inside the block; restores the mode and all random states."""
    with evaluating(run.model), torch.no_grad():
        yield


def _step_event(
    run: TrainingRun, state: TrainState, callback: EvalCallback, step: int, row: dict[str, float]
) -> StepEvent:
    return StepEvent(step=step, full=run.parallel.full_tensor, **_offered(run, state, callback, run.model, row))


def _checked_weights(
    weights: Any, callback: EvalCallback, model_weights: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """The result of `eval_weights`; raises PluginError unless it fits `model_weights`."""
    if not isinstance(weights, Mapping):
        raise PluginError(f"{label(callback)}: eval_weights must return a dict of tensors, not {weights!r}")
    for name, tensor in weights.items():
        if name not in model_weights:
            raise PluginError(
                f"{label(callback)}: eval_weights returned {name!r}, but the model has no such weight"
            )
        if not isinstance(tensor, torch.Tensor) or type(tensor.data) is not type(model_weights[name]):
            raise PluginError(
                f"{label(callback)}: eval_weights returned a {type(tensor).__name__} for {name!r}, but the "
                f"model has a {type(model_weights[name]).__name__}: return shards under FSDP"
            )
        if tensor.shape != model_weights[name].shape:
            raise PluginError(
                f"{label(callback)}: eval_weights returned {list(tensor.shape)} for {name!r}, but the "
                f"model has {list(model_weights[name].shape)}"
            )
    return weights


# ── after an evaluation ───────────────────────────────────────────────────────────────────────────


def call_evaluation_callbacks(run: TrainingRun, state: TrainState, row: dict[str, float]) -> dict[str, float]:
    """Calls `on_evaluation` of the callbacks on rank 0; returns `row` with their numbers, on every rank. Sets
    `state.stop_reason` if a callback ends the run. All ranks must call it."""
    ranks = run.parallel.ranks
    if run.components.callbacks_with("on_evaluation"):
        model = run.parallel.full_model()
        row, state.stop_reason = ranks.on_rank0(lambda: _call_on_rank0(run, model, row, state))
        for callback in run.components.callbacks_with("on_evaluation") if ranks.world_size > 1 else ():
            if any(map(callback.has, CALLBACK_METHODS[1:])):  # every rank calls its step methods
                _broadcast_memory(run, state, callback)
    return row


def _broadcast_memory(run: TrainingRun, state: TrainState, callback: EvalCallback) -> None:
    """Broadcasts the plain values in rank 0's memory of a callback; each rank keeps its own tensors."""
    ranks, memory = run.parallel.ranks, state.memory.get(callback.name, {})
    received = ranks.on_rank0(
        lambda: memory, to_others=lambda memory: {"memory": map_tensors(lambda tensor: torch.empty(0), memory)}
    )
    if ranks.is_rank0:
        return
    tensors: dict[str, torch.Tensor] = {}
    map_named(tensors.setdefault, memory)
    try:
        state.memory[callback.name] = map_named(lambda name, _: tensors[name], received["memory"])
    except KeyError as error:
        raise PluginError(
            f"{label(callback)}: on_evaluation put a tensor into memory ({error.args[0]}), but it runs on rank 0 "
            "only: create the tensor in after_step"
        ) from None


def _call_on_rank0(
    run: TrainingRun, model: LanguageModel | None, row: dict[str, float], state: TrainState
) -> tuple[dict[str, float], str]:
    """The row with the callbacks' numbers, and the reason why one of them ends the run (empty: none does)."""
    assert model is not None  # this is rank 0
    row = dict(row)
    for callback in run.components.callbacks_with("on_evaluation"):
        with calling(callback, when=f"at step {state.step}"):
            _record(_call_one(run, callback, model, row, state), callback, row, state)
    return row, state.stop_reason


def _call_one(
    run: TrainingRun, callback: EvalCallback, model: LanguageModel, row: dict[str, float], state: TrainState
) -> dict[str, float]:
    """The numbers that a callback returns; none if it stops the run."""

    def show(text: str) -> None:
        if callback.records_only:
            raise PluginError(f"{label(callback)} has records_only, so it must not call event.show")
        if not isinstance(text, str):
            raise PluginError(f"{label(callback)} called event.show with {type(text).__name__}, but it takes str")
        text.encode()  # raises for lone surrogates
        say(f"{callback.name}: {' '.join(text.split())}")
        state.samples.append({"step": state.step, "callback": callback.name, "text": text})

    event = EvaluationEvent(
        step=state.step,
        history=tuple(dict(earlier) for earlier in state.history),
        generate=partial(_generate, run, model),
        show=show,
        **_offered(run, state, callback, model, row),
    )
    run.stop.check()
    with evaluating(model):
        try:
            return callback.on_evaluation(event)
        except StopTraining as reason:
            if callback.records_only:
                raise PluginError(f"{label(callback)} has records_only, so it must not stop the run") from reason
            state.stop_reason = " ".join(str(reason).split()) or f"{callback.name} stopped the run"
            say(f"stopping at step {state.step}: {state.stop_reason}")
            return {}


# ── what an event offers ──────────────────────────────────────────────────────────────────────────


def _offered(
    run: TrainingRun, state: TrainState, callback: EvalCallback, model: LanguageModel, row: dict[str, float]
) -> dict[str, Any]:
    """The fields of every `TrainingEvent`, but the step."""
    device = device_of(model)
    return {
        "total_steps": run.total_steps,
        "metrics": dict(row),
        "model": model,
        "batches": partial(_batches, run, device, _ids),
        "targets": partial(_batches, run, device, _targets),
        "loss": partial(_token_losses, model),
        "memory": state.memory.setdefault(callback.name, {}),
    }


def _batches(
    run: TrainingRun, device: torch.device, read: Callable[[MaskedIds, EvaluationWindow], Ids], side: str
) -> Iterator[torch.Tensor]:
    """What `read` finds in the windows of "train" or "val" that each evaluation reads, batch by batch."""
    if side not in run.data.eval_windows:
        raise ValueError(f"event.batches takes {' or '.join(map(repr, run.data.eval_windows))}, not {side!r}")
    ids, size = run.data.ids[side], run.params.micro_batch_size
    for _, same in groupby(run.data.eval_windows[side], lambda window: window.end - window.start):
        windows = [read(ids, window) for window in same]
        for first in range(0, len(windows), size):
            yield torch.from_numpy(np.stack(windows[first : first + size])).to(device)


def _ids(ids: MaskedIds, window: EvaluationWindow) -> Ids:
    """The ids of a window [T + 1]."""
    return ids.ids[window.start : window.end].astype(np.int64)


def _targets(ids: MaskedIds, window: EvaluationWindow) -> Ids:
    """The targets of a window [T]."""
    targets = ids.targets(window.start + 1, window.end)
    targets[: len(targets) - window.counted] = IGNORED
    return targets


@torch.no_grad()
def _token_losses(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """The negative log-likelihood of ids [B, T + 1], each given those before it: nats [B, T]."""
    ids = ids.to(device_of(model))
    with evaluating(model):
        return score_tokens(checked_forward(model, ids[:, :-1]), ids[:, 1:])[0]


def _generate(
    run: TrainingRun, model: LanguageModel, prompt: str, max_new_tokens: int = 50, temperature: float = 0.0
) -> str:
    """The prompt with its continuation; temperature 0 takes the most likely token each time."""
    tokenizer, device = run.data.tokenizer, device_of(model)
    start = [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text]
    generator = torch.Generator(device).manual_seed(0) if temperature > 0 else None
    samplers = [lambda logits, tokens: logits / max(temperature, 1e-6)] if temperature > 0 else []
    drawn = []
    with evaluating(model):
        for token in generate(model, torch.tensor([start], device=device), max_new_tokens, samplers, generator):
            run.stop.check()
            drawn.append(int(token))
    return prompt + tokenizer.decode(drawn)


RESERVED = {"tokens", "train.objective", "learning_rate", "grad_norm"}
RESERVED |= {"seconds", "processor_seconds", "tokens_per_sec"}
"""Reserved columns: some rows lack them, or the report adds them."""


def _record(numbers: Any, callback: EvalCallback, row: dict[str, float], state: TrainState) -> None:
    """Adds to `row` the numbers that a callback returned, if these and its memory are valid."""
    where = label(callback)
    check_numbers(numbers, where)
    for name in numbers:
        if callback.records_only:
            raise PluginError(f"{where} has records_only, so it must return an empty dict, not {name!r}")
        if name in row or name in RESERVED:
            raise PluginError(f"{where} returned {name!r}, which is already recorded: choose another name")
    check_plain(state.memory[callback.name], f"{where}: its memory")
    row |= {name: float(value) for name, value in numbers.items()}
