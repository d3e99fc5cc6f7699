"""An evaluation during training: losses on fixed windows, the best weights, the callbacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from pipeline.core.console import say
from pipeline.core.errors import PipelineError, PluginError
from pipeline.data.batches import EvaluationWindow
from pipeline.model.generate import generate
from pipeline.model.gpt import GPT
from pipeline.model.scoring import Summary, evaluating, score
from pipeline.plugin.calls import calling, check_numbers, named
from pipeline.plugin.components import EvalCallback, EvaluationEvent, StopTraining
from pipeline.train.components import check_plain
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState


def evaluate(run: TrainingRun, state: TrainState) -> None:
    """Adds this step's numbers to the history and the timing, keeps the best weights, calls the callbacks.

    Training continues as if nothing had been evaluated: random state and train mode are restored.

    Raises:
        Stopping: the run was asked to stop; `state` is as it was before.
    """
    draft, parallel = state.draft(), run.parallel
    with parallel.eager():
        row = _measure(run, draft)
        if row["val.loss"] < draft.best_loss:
            draft.best_step, draft.best_loss = draft.step, row["val.loss"]
            draft.best_weights = parallel.to_cpu(parallel.model.state_dict())
        say(
            f"step {draft.step:>6,}  train {row['train.loss']:.4f}  val {row['val.loss']:.4f}  "
            f"perplexity {row.get('val.perplexity', float('inf')):.1f}  "
            f"bits/byte {row.get('val.bits_per_byte', float('nan')):.3f}"
        )
        if run.components.callbacks:
            model = parallel.full_model()
            row, draft.stopped = parallel.ranks.on_rank0(lambda: _call_all(run, model, row, draft))
    draft.history.append(row)
    draft.timing.append(
        {
            "step": draft.step,
            "seconds": draft.seconds,
            "processor_seconds": draft.processor_seconds,
            "tokens_per_sec": row["tokens"] / draft.seconds if draft.seconds else 0.0,
        }
    )
    draft.objective_nats, draft.objective_tokens = 0.0, 0
    state.adopt(draft)


def summarize(run: TrainingRun, name: str, windows: Sequence[EvaluationWindow]) -> Summary:
    """Scores windows of "train" or "val"; each rank takes every so-many-th batch of them."""
    ranks, size = run.parallel.ranks, run.params.micro_batch_size
    batches = [windows[start : start + size] for start in range(0, len(windows), size)]
    summary = Summary(run.data.tokenizer.byte_lengths)
    for first in range(0, len(batches), ranks.count):
        run.stop_if_asked()
        number = first + ranks.rank
        # Ranks without a batch compute the last one: collectives must match where weights are sharded.
        for scores in score(run.model, run.data.ids[name], batches[min(number, len(batches) - 1)], size):
            if number < len(batches):
                summary.add(scores)
    return summary.over(ranks.all_reduce_sum)


def _measure(run: TrainingRun, state: TrainState) -> dict[str, float]:
    windows, data = run.length.windows_before(state.step), run.data
    row: dict[str, float] = {
        "step": state.step,
        "tokens": windows * data.windows.context_length,
        "epoch": windows / data.windows.per_epoch,
    }
    if state.objective_tokens:  # steps were taken since the last evaluation
        row["train.objective"] = state.objective_nats / state.objective_tokens
        row["learning_rate"] = run.optimizer.param_groups[0]["lr"]
        row["grad_norm"] = state.grad_norm
    for name in ("train", "val"):
        summary = summarize(run, name, data.evaluated[name])
        if not math.isfinite(summary.loss):
            raise PipelineError(
                f"training stopped at step {state.step}: {name}.loss is {summary.loss}: lower the optimizer's "
                "lr, or set train.grad_clip"
            )
        row |= {f"{name}.{key}": value for key, value in summary.metrics().items()}
    return row


# ── callbacks ─────────────────────────────────────────────────────────────────────────────────────


def _call_all(
    run: TrainingRun, model: GPT | None, row: dict[str, float], state: TrainState
) -> tuple[dict[str, float], str]:
    """The row with the callbacks' numbers, and why one of them ends the run, if one does."""
    assert model is not None  # this is the first rank
    row = dict(row)
    for callback in run.components.callbacks:
        with calling(callback, when=f"at step {state.step}"):
            numbers = _call(run, callback, model, row, state)
            _check_numbers(numbers, callback, row)
            check_plain(state.memory[callback.name], f"{named(callback)}: its memory")
            row |= {name: float(value) for name, value in numbers.items()}
    return row, state.stopped


def _call(
    run: TrainingRun, callback: EvalCallback, model: GPT, row: dict[str, float], state: TrainState
) -> dict[str, float]:
    """What the callback returns; one that stops the run returns nothing."""

    def show(text: str) -> None:
        if callback.records_only:
            raise PluginError(f"{named(callback)} only records, so it has nothing to show")
        if not isinstance(text, str):
            raise PluginError(f"{named(callback)} called event.show with {type(text).__name__}: it takes text")
        text.encode()  # raises where it holds lone surrogates
        say(f"        {callback.name}: {text}")
        state.samples.append({"step": state.step, "callback": callback.name, "text": text})

    event = EvaluationEvent(
        step=state.step,
        total_steps=run.total_steps,
        metrics=dict(row),
        history=tuple(dict(earlier) for earlier in state.history),
        generate=partial(_generate, run, model),
        show=show,
        model=model,
        memory=state.memory.setdefault(callback.name, {}),
    )
    run.stop.check()
    with evaluating(model):
        try:
            return callback.on_evaluation(event)
        except StopTraining as reason:
            if callback.records_only:
                raise PluginError(f"{named(callback)} only records, so it cannot stop") from reason
            state.stopped = " ".join(str(reason).split()) or f"{callback.name} stopped the run"
            say(f"stopping at step {state.step}: {state.stopped}")
            return {}


def _generate(run: TrainingRun, model: GPT, prompt: str, max_new_tokens: int = 50, temperature: float = 0.0) -> str:
    """The prompt and what the model makes of it; temperature 0 takes the likeliest token each time."""
    tokenizer, device = run.data.tokenizer, model.head_weight.device
    start = [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text]
    generator = torch.Generator(device).manual_seed(0) if temperature > 0 else None
    samplers = [lambda logits, tokens: logits / max(temperature, 1e-6)] if temperature > 0 else []
    drawn = []
    with evaluating(model):
        for token in generate(model, torch.tensor([start], device=device), max_new_tokens, samplers, generator):
            run.stop.check()
            drawn.append(int(token))
    return prompt + tokenizer.decode(drawn)


_RESERVED = {"train.objective", "learning_rate", "grad_norm", "seconds", "processor_seconds", "tokens_per_sec"}
"""Columns that the first evaluation lacks, or that the report adds."""


def _check_numbers(numbers: Any, callback: EvalCallback, row: dict[str, float]) -> None:
    where = named(callback)
    check_numbers(numbers, where)
    for name in numbers:
        if callback.records_only:
            raise PluginError(f"{where} only records, so it must return an empty dict, not {name!r}")
        if name in row or name in _RESERVED:
            raise PluginError(f"{where} returned {name!r}, which is already recorded: choose another name")
