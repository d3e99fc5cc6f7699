"""The training loop: batches, loss, gradients, optimizer; an evaluation now and then; a state to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.console import Progress
from pipeline.data.batches import TrainingWindows
from pipeline.errors import Interrupted, PipelineError, PluginError, raised_by
from pipeline.model.gpt import GPT
from pipeline.plugin.components import IGNORED, Loss, ModelOutput
from pipeline.training.interrupt import StopSignal
from pipeline.training.state import StateStore, TrainState, random_state, restore_random_state


@dataclass(frozen=True)
class Run:
    """Everything a run needs that does not change while it runs.

    Attributes:
        model, optimizer, loss: What is trained, and how.
        data: The training windows in their order.
        schedule: The learning rate's multiplier at a step.
        total_steps, total_windows: Where the run ends; only the last step may have fewer windows.
        batch_size, micro_batch_size: Windows in a step, and computed at once.
        precision: "fp32" or "bf16".
        grad_clip: Largest gradient norm; 0 leaves gradients as they are.
        evaluate_every: Steps between evaluations.
        evaluate: Evaluates, adds to the state's history and runs the callbacks.
        store, save_seconds: Where states go, and how often.
        stop: Whether the process was asked to stop.
    """

    model: GPT
    optimizer: torch.optim.Optimizer
    loss: Loss
    data: TrainingWindows
    schedule: Callable[[int], float]
    total_steps: int
    total_windows: int
    batch_size: int
    micro_batch_size: int
    precision: str
    grad_clip: float
    evaluate_every: int
    evaluate: Callable[[TrainState], None]
    store: StateStore
    save_seconds: float
    stop: StopSignal

    @property
    def device(self) -> torch.device:
        return self.model.head_weight.device

    def offsets(self, step: int) -> list[int]:
        """Where in the text the windows of a step begin."""
        first = step * self.batch_size
        return self.data.offsets(first, min(first + self.batch_size, self.total_windows))


def train(run: Run, state: TrainState) -> None:
    """Trains from `state` to the end of the run, or to a callback's StopTraining.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the last complete step is saved.
        PipelineError: the loss or the gradient is not finite; the last good state is kept.
    """
    run.model.train()
    saved_at = time.monotonic()
    with Progress("training", "step", run.total_steps, state.step) as progress:
        while True:
            last = state.step == run.total_steps
            if (last or state.step % run.evaluate_every == 0) and not _evaluated(state):
                run.evaluate(state)
            if last or state.stopped:
                break
            started, processor_started = time.perf_counter(), time.process_time()
            nats, tokens = train_step(run, state)
            state.seconds += time.perf_counter() - started
            state.processor_seconds += time.process_time() - processor_started
            progress.update(1, **_shown(run, state, nats / max(tokens, 1)))
            if time.monotonic() - saved_at > run.save_seconds:
                run.store.save(state.capture(run.model, run.optimizer))
                saved_at = time.monotonic()
    state.complete = True
    run.store.save(state.capture(run.model, run.optimizer))


def train_step(run: Run, state: TrainState) -> tuple[float, int]:
    """One optimizer step; returns the sum of the loss in nats and the number of targets it is over."""
    step = state.step
    set_learning_rate(run.optimizer, run.schedule(step))
    offsets = run.offsets(step)
    inputs, targets = (torch.from_numpy(array) for array in run.data.batch(offsets))
    tokens = int((targets != IGNORED).sum())

    run.optimizer.zero_grad(set_to_none=True)
    nats, random = 0.0, random_state()
    for x, y in _micro_batches(inputs, targets, run.micro_batch_size):
        _leave_if_asked(run, state, random)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            output = run.model(x.to(run.device))
        loss = _nats(run.loss, output, y.to(run.device)).sum()
        if tokens:
            (loss / tokens).backward()  # type: ignore[no-untyped-call]
        nats += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.grad_clip or math.inf).item()
    _check_finite(nats, norm, run, step, offsets)
    if tokens:
        run.optimizer.step()

    state.step += 1
    state.objective_nats += nats
    state.objective_tokens += tokens
    state.grad_norm = norm
    return nats, tokens


def _nats(loss: Loss, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
    """The loss's nats [B, T]; what is no such thing would train silently on another scale."""
    try:
        nats = loss(output, targets)
    except Exception as error:
        if "out of memory" in str(error) or isinstance(error, MemoryError):
            raise
        raise raised_by(f"the loss {loss.name!r}", error) from error
    if not isinstance(nats, torch.Tensor) or nats.shape != targets.shape:
        got = list(nats.shape) if isinstance(nats, torch.Tensor) else type(nats).__name__
        raise PluginError(
            f"the loss {loss.name!r} returned {got}, not one number a target, [B, T] = {list(targets.shape)}: use "
            'reduction="none" and .view(targets.shape)'
        )
    return nats


def set_learning_rate(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Sets each group's rate to its initial rate times `multiplier`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * multiplier


def _micro_batches(
    inputs: torch.Tensor, targets: torch.Tensor, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    starts = range(0, len(inputs), size)
    return ((inputs[start : start + size], targets[start : start + size]) for start in starts)


def _evaluated(state: TrainState) -> bool:
    return bool(state.history) and state.history[-1]["step"] == state.step


def _leave_if_asked(run: Run, state: TrainState, random: dict[str, Any]) -> None:
    """Drops the step at hand (on resume it is done again, from the random state it began with) and leaves."""
    if run.stop.number is not None:
        restore_random_state(random)
        run.store.save(state.capture(run.model, run.optimizer))
        raise Interrupted(
            run.stop.number,
            f"training stopped at step {state.step} of {run.total_steps}; run it again to go on",
        )


def _check_finite(nats: float, norm: float, run: Run, step: int, offsets: list[int]) -> None:
    if math.isfinite(nats) and math.isfinite(norm):
        return
    what = f"the loss is {nats}" if not math.isfinite(nats) else f"the gradient's norm is {norm}"
    rates = ", ".join(f"{group['lr']:.3g}" for group in run.optimizer.param_groups)
    raise PipelineError(
        f"training stopped at step {step}: {what} (learning rate {rates}; windows at tokens "
        f"{_listed(offsets)} of the training split): lower the optimizer's lr, or set train.grad_clip"
    )


def _listed(values: list[int]) -> str:
    shown = ", ".join(str(value) for value in values[:8])
    return shown + (f" and {len(values) - 8} more" if len(values) > 8 else "")


def _shown(run: Run, state: TrainState, loss: float) -> dict[str, Any]:
    tokens = min(state.step * run.batch_size, run.total_windows) * run.data.context_length
    rate = run.optimizer.param_groups[0]["lr"]
    return {"loss": f"{loss:.3f}", "lr": f"{rate:.2e}", "tokens/s": f"{tokens / state.seconds:,.0f}"}
