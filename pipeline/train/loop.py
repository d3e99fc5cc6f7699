"""The training loop: optimizer steps, evaluations, and training checkpoints to resume from."""

from __future__ import annotations

import math
import time

import torch

from pipeline.core.errors import Interrupted, PluginError, StopRequested
from pipeline.plugin.calls import calling, label
from pipeline.train.batch import MicroBatch, read_step
from pipeline.train.callbacks import call_step_callbacks
from pipeline.train.evaluation import evaluate
from pipeline.train.pending import Pending, StepNumbers
from pipeline.train.progress import TrainingProgress
from pipeline.train.publish import finalize
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState, random_state, restore_random_state, seed_generators


def train(run: TrainingRun, state: TrainState) -> None:
    """Trains from `state` to the end of the run, or until a callback raises StopTraining.

    Raises:
        Interrupted: on SIGINT or SIGTERM, or when the parent process died. The last complete step is saved.
        PipelineError: the loss or the gradient is not finite. The last good checkpoint is kept.
    """
    run.model.train()
    try:
        _steps(run, state)
        finalize(run, state)
        _save_now(run, state)
    except StopRequested as stop:
        _save_now(run, state)
        raise Interrupted(
            stop.number, f"training stopped at step {state.step} of {run.total_steps}; run it again to resume"
        ) from None
    finally:
        run.saver.wait()


def _steps(run: TrainingRun, state: TrainState) -> None:
    pending = Pending(run, state)
    with TrainingProgress(run, state) as progress:
        _show_live(run, state)
        _evaluate_if_due(run, state, progress)
        while state.step < run.total_steps and not state.stop_reason:
            started, processor_started = time.perf_counter(), time.process_time()
            take_step(run, state, pending)
            save = run.parallel.ranks.on_rank0(run.saver.due)
            if save or _evaluation_due(run, state):
                pending.settle()
            state.seconds += time.perf_counter() - started
            state.processor_seconds += time.process_time() - processor_started
            progress.stepped(state, pending.nats / pending.tokens if pending.tokens else None)
            if save:
                _save(run, state)
            _evaluate_if_due(run, state, progress)


def train_step(run: TrainingRun, state: TrainState) -> tuple[float, int]:
    """Takes one optimizer step; returns the sum of the loss in nats and the number of targets."""
    pending = Pending(run, state)
    take_step(run, state, pending)
    pending.settle()
    return pending.nats, pending.tokens


def take_step(run: TrainingRun, state: TrainState, pending: Pending) -> None:
    """Takes one optimizer step. On a GPU nothing here waits for the device (in fp16, the scaler does unless the
    optimizer is fused); `pending` reads the results.

    Raises:
        StopRequested: the run was asked to stop; the step is dropped, and the steps before it are settled.
        PipelineError: the loss or the gradient is not finite.
    """
    step = state.step
    row: dict[str, float] = {"step": step + 1}  # a row of metrics/steps.tsv
    set_learning_rate(run.optimizer, run.phase.schedule(step))
    tokens, micro_batches = read_step(run, step)

    run.optimizer.zero_grad(set_to_none=True)
    random = random_state()
    try:
        losses = [_add_gradients(run, step, micro_batch, tokens) for micro_batch in micro_batches]
    except StopRequested:
        restore_random_state(random)  # the unfinished step is dropped; a resumed run repeats it
        pending.settle()
        raise
    if tokens and all(parameter.grad is None for parameter in run.model.parameters()):
        raise PluginError(f"{label(run.components.loss)} gives no parameter of the model a gradient")
    run.scaler.unscale_(run.optimizer)
    call_step_callbacks("before_update", run, state, row)
    norm = run.parallel.clip(run.params.grad_clip or math.inf)

    numbers = StepNumbers.sent(row, tokens, losses, norm)
    if pending.good(numbers):
        if tokens:
            run.scaler.step(run.optimizer)
        row["learning_rate"] = run.optimizer.param_groups[0]["lr"]
        call_step_callbacks("after_step", run, state, row)
        pending.record(numbers)
    run.scaler.update()
    state.step += 1


def _add_gradients(run: TrainingRun, step: int, micro_batch: MicroBatch, tokens: int) -> torch.Tensor:
    """The forward and backward pass of a micro-batch of a step with `tokens` targets. Returns the loss, the sum of
    its targets' nats: a scalar on the device."""
    inputs, targets, counted, first_window, first, last = micro_batch
    if first or run.device.type == "cpu":  # on a CPU a micro-batch can take a minute
        run.stop_if_asked()
    seed_generators(run.params.seed, first_window)
    with run.stop.interruptible_compile(run.parallel.ranks), run.parallel.accumulating(last):
        with run.autocast():
            output = run.parallel.forward(inputs)
        about = {"inputs": inputs, "step": step, "total_steps": run.total_steps, "teacher": run.teach}
        loss = run.components.nats(output, targets, **about).sum()
        if isinstance(output.auxiliary, torch.Tensor):  # nats per target
            loss = loss + output.auxiliary * counted
        with calling(run.components.loss, when="in its backward pass"):
            run.scaler.scale(loss / max(tokens, 1)).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def set_learning_rate(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Sets each group's learning rate to its initial rate times `multiplier`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * multiplier


def _show_live(run: TrainingRun, state: TrainState) -> None:
    if run.parallel.ranks.is_rank0:
        run.live.show(run.total_steps, state.history)


def _evaluation_due(run: TrainingRun, state: TrainState) -> bool:
    return state.step == run.total_steps or state.step % run.params.evaluation.every == 0


def _evaluate_if_due(run: TrainingRun, state: TrainState, progress: TrainingProgress) -> None:
    evaluated = state.history and state.history[-1]["step"] == state.step  # before the run was interrupted
    if _evaluation_due(run, state) and not evaluated:
        with progress.evaluating(state):
            evaluate(run, state)
        _show_live(run, state)


def _save(run: TrainingRun, state: TrainState) -> None:
    started = time.monotonic()
    captured = state.capture(run)
    if run.parallel.ranks.is_rank0 or run.parallel.sharded:
        run.saver.save_async(captured, time.monotonic() - started)


def _save_now(run: TrainingRun, state: TrainState) -> None:
    captured = state.capture(run)
    if run.parallel.sharded:
        run.saver.save_now(captured)  # each rank writes its shards
    else:
        run.parallel.ranks.on_rank0(lambda: run.saver.save_now(captured))
