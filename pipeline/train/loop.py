"""The training loop: optimizer steps, evaluations, and training checkpoints to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from pipeline.core.console import say
from pipeline.core.errors import Interrupted, PipelineError, PluginError
from pipeline.distributed.interrupt import StopRequested
from pipeline.plugin.calls import calling, label
from pipeline.plugin.components import IGNORED
from pipeline.train.callbacks import call_step_callbacks
from pipeline.train.evaluation import evaluate
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
    with TrainingProgress(run, state) as progress:
        _show_live(run, state)
        while True:
            last = state.step == run.total_steps
            if (last or state.step % run.params.evaluation.every == 0) and not _evaluated(state):
                with progress.evaluating(state):
                    evaluate(run, state)
                _show_live(run, state)
            if last or state.stop_reason:
                return
            started, processor_started = time.perf_counter(), time.process_time()
            nats, tokens = train_step(run, state)
            state.seconds += time.perf_counter() - started
            state.processor_seconds += time.process_time() - processor_started
            progress.stepped(state, nats / max(tokens, 1))
            _save_if_due(run, state)


def train_step(run: TrainingRun, state: TrainState) -> tuple[float, int]:
    """Takes one optimizer step; returns the sum of the loss in nats and the number of targets."""
    step = state.step
    row: dict[str, float] = {"step": step + 1}  # a row of metrics/steps.tsv
    set_learning_rate(run.optimizer, run.phase.schedule(step))
    inputs, targets = (torch.from_numpy(array) for array in run.data.batch(run.offsets(step)))
    tokens = int((targets != IGNORED).sum())  # over all ranks: each one reads the whole batch

    run.optimizer.zero_grad(set_to_none=True)
    losses, random = [], random_state()
    for x, y, first_window, last in _micro_batches(run, inputs, targets, run.length.windows(step)[0]):
        try:
            run.stop_if_asked()
            seed_generators(run.params.seed, first_window)
            with run.stop.interruptible_compile(run.parallel.ranks), run.parallel.accumulating(last):
                x, y = run.to_device(x), run.to_device(y)
                with run.autocast():
                    output = run.parallel.forward(x)
                about = {"inputs": x, "step": step, "total_steps": run.total_steps, "teacher": run.teach}
                loss = run.components.nats(output, y, **about).sum()
                if isinstance(output.auxiliary, torch.Tensor):  # nats per target
                    loss = loss + output.auxiliary * int((y != IGNORED).sum())
                with calling(run.components.loss, when="in its backward pass"):
                    (loss / max(tokens, 1)).backward()  # type: ignore[no-untyped-call]
        except StopRequested:
            restore_random_state(random)  # the unfinished step is dropped; a resumed run repeats it
            raise
        losses.append(loss.detach())
    call_step_callbacks("before_update", run, state, row)
    # The first read of a result: until here the GPU ran asynchronously.
    norm = float(run.parallel.clip(run.params.grad_clip or math.inf))
    if norm == 0 and tokens and all(parameter.grad is None for parameter in run.model.parameters()):
        raise PluginError(f"{label(run.components.loss)} gives no parameter of the model a gradient")
    (nats,) = run.parallel.ranks.all_reduce_sum(sum(loss.item() for loss in losses))

    if not math.isfinite(nats) or not math.isfinite(norm):
        _skip_or_stop(run, state, nats, norm)
    else:
        if tokens:
            run.optimizer.step()
        state.objective_nats += nats
        state.objective_tokens += tokens
        state.grad_norm = norm
        row |= {"train.objective": nats / max(tokens, 1), "learning_rate": _rate(run), "grad_norm": norm}
        call_step_callbacks("after_step", run, state, row)
        _log(run, state, row)
    state.step += 1
    return nats, tokens


class MicroBatch(NamedTuple):
    """The windows of one forward and backward pass on one rank.

    Attributes:
        inputs, targets: Ids [B, T].
        first_window: The index, within the run, of its first window; it seeds the dropout.
        last: Whether this is the step's last micro-batch on this rank.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    first_window: int
    last: bool


def _micro_batches(
    run: TrainingRun, inputs: torch.Tensor, targets: torch.Tensor, first: int
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of a step: rank r takes micro-batches r, r + world_size, … of the whole batch.

    Ranks without work run a dummy batch without targets: the collectives that exchange gradients must match.
    """
    ranks, size = run.parallel.ranks, run.micro_batch_size
    starts = range(0, len(inputs), size)
    for round in range(0, len(starts), ranks.world_size):
        number, last = round + ranks.rank, round + ranks.world_size >= len(starts)
        if number < len(starts):
            part = slice(starts[number], starts[number] + size)
            yield MicroBatch(inputs[part], targets[part], first + starts[number], last)
        else:
            yield MicroBatch(inputs[:size], torch.full_like(targets[:size], IGNORED), first, last)


def set_learning_rate(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Sets each group's learning rate to its initial rate times `multiplier`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * multiplier


def _log(run: TrainingRun, state: TrainState, row: dict[str, float]) -> None:
    """Records the numbers of the first step and of every `train.log_every`-th step."""
    every, step = run.params.log_every, int(row["step"])
    if every and (step == 1 or step % every == 0):
        tokens = run.length.windows_before(step) * run.data.windows.context_length
        measured = {name: row[name] for name in ("train.objective", "learning_rate", "grad_norm")}
        state.steps.append({"step": step, "tokens": tokens, **measured, **row})  # the callbacks' numbers last
        if run.parallel.ranks.is_rank0:
            run.live.update(state.steps)


def _show_live(run: TrainingRun, state: TrainState) -> None:
    if run.parallel.ranks.is_rank0:
        run.live.show(run.total_steps, state.history)


def _evaluated(state: TrainState) -> bool:
    return bool(state.history) and state.history[-1]["step"] == state.step


def _save_if_due(run: TrainingRun, state: TrainState) -> None:
    ranks = run.parallel.ranks
    if ranks.on_rank0(run.saver.due):
        started = time.monotonic()
        captured = state.capture(run)
        if ranks.is_rank0 or run.parallel.sharded:
            run.saver.save_async(captured, time.monotonic() - started)


def _save_now(run: TrainingRun, state: TrainState) -> None:
    captured = state.capture(run)
    if run.parallel.sharded:
        run.saver.save_now(captured)  # each rank writes its shards
    else:
        run.parallel.ranks.on_rank0(lambda: run.saver.save_now(captured))


def _skip_or_stop(run: TrainingRun, state: TrainState, nats: float, norm: float) -> None:
    """Records a skipped step, whose loss or gradient is not finite; raises PipelineError if there were too many."""
    what = f"the loss is {nats}" if not math.isfinite(nats) else f"the gradient's norm is {norm}"
    rates = ", ".join(f"{group['lr']:.3g}" for group in run.optimizer.param_groups)
    where = f"learning rate {rates}; windows at tokens {_listed(run.offsets(state.step))} of the training split"
    if len(state.skipped) >= run.params.skip_bad_steps:
        so_far = f", after {len(state.skipped)} skipped steps" if state.skipped else ""
        raise PipelineError(
            f"training stopped at step {state.step}{so_far}: {what} ({where}; {label(run.components.loss)}): "
            "lower the optimizer's lr, set train.grad_clip, or raise train.skip_bad_steps"
        )
    state.skipped.append({"step": state.step, "why": what, "where": where})
    count = f"{len(state.skipped)} of at most {run.params.skip_bad_steps}"
    say(f"step {state.step:>6,}  skipped ({count}): {what} ({where})")


def _listed(values: list[int]) -> str:
    shown = ", ".join(str(value) for value in values[:8])
    return shown + (f" and {len(values) - 8} more" if len(values) > 8 else "")


def _rate(run: TrainingRun) -> float:
    rate: float = run.optimizer.param_groups[0]["lr"]
    return rate
