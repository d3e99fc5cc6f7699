"""An evaluation during training: losses on fixed windows, best weights, callbacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.core.console import say
from pipeline.core.errors import PipelineError
from pipeline.data.batches import EvaluationWindow
from pipeline.model.scoring import Summary, score
from pipeline.train.callbacks import call_evaluation_callbacks, evaluation_weights
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState


def evaluate(run: TrainingRun, state: TrainState) -> None:
    """Evaluates the model: adds a row to the history and the timing, keeps the best weights, calls the callbacks.

    It computes in the training precision. It does not influence training: random states and train mode are
    restored.

    Raises:
        StopRequested: the run was asked to stop; `state` is unchanged.
    """
    updated, parallel = state.copy(), run.parallel
    with parallel.eager(), evaluation_weights(run, updated):
        row = _measure(run, updated)
        if row["val.loss"] < updated.best_loss:
            updated.best_step, updated.best_loss = updated.step, row["val.loss"]
            updated.best_weights = parallel.to_cpu(parallel.model.state_dict())
        say(
            f"step {updated.step:>6,}  loss train {row['train.loss']:.4f}, val {row['val.loss']:.4f}  "
            f"perplexity {row.get('val.perplexity', float('inf')):.1f}  "
            f"bits/byte {row.get('val.bits_per_byte', float('nan')):.3f}"
        )
        row = call_evaluation_callbacks(run, updated, row)
    updated.history.append(row)
    updated.timing.append(
        {
            "step": updated.step,
            "seconds": updated.seconds,
            "processor_seconds": updated.processor_seconds,
            "tokens_per_sec": row["tokens"] / updated.seconds if updated.seconds else 0.0,
        }
    )
    updated.objective_nats, updated.objective_tokens = 0.0, 0
    state.update_from(updated)


def summarize(
    run: TrainingRun, name: str, windows: Sequence[EvaluationWindow], in_float32: bool = False
) -> Summary:
    """Scores windows of "train" or "val" in the training precision, or in float32, on all ranks: rank r takes
    batches r, r + world_size, …. All ranks must call it."""
    ranks, size = run.parallel.ranks, run.params.micro_batch_size
    batches = [windows[start : start + size] for start in range(0, len(windows), size)]
    summary, ids = Summary(run.data.tokenizer.byte_lengths), run.data.ids[name]
    model, autocast = (run.parallel.model_to_score(), None) if in_float32 else (run.model, run.autocast)
    for first in range(0, len(batches), ranks.world_size):
        run.stop_if_asked()
        number = first + ranks.rank
        # Ranks without a batch compute the last one again: FSDP's collectives must match.
        for scores in score(model, ids, batches[min(number, len(batches) - 1)], size, autocast=autocast):
            if number < len(batches):
                summary.add(scores)
    return summary.all_reduce(ranks.all_reduce_sum)


def _measure(run: TrainingRun, state: TrainState) -> dict[str, float]:
    windows, data = run.length.windows_before(state.step), run.data
    row: dict[str, float] = {
        "step": state.step,
        "tokens": windows * data.windows.context_length,
        "epoch": windows / data.windows.per_epoch,
    }
    if state.objective_tokens:  # since the last evaluation
        row["train.objective"] = state.objective_nats / state.objective_tokens
        row["learning_rate"] = run.optimizer.param_groups[0]["lr"]
        row["grad_norm"] = state.grad_norm
    for name in ("train", "val"):
        summary = summarize(run, name, data.eval_windows[name])
        if not math.isfinite(summary.loss):
            raise PipelineError(
                f"training stopped at step {state.step}: {name}.loss is {summary.loss}: lower the optimizer's "
                "lr, or set train.grad_clip"
            )
        row |= {f"{name}.{key}": value for key, value in summary.metrics().items()}
    return row
