"""What a finished run leaves: the checkpoint and the metrics, with one full evaluation of validation text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.console import fact
from pipeline.core.files import published_folder, room_for, write_atomically, write_json
from pipeline.data.batches import evaluation_windows
from pipeline.model.checkpoint import SAMPLES, tensor_bytes, write_checkpoint
from pipeline.model.device import peak_memory
from pipeline.model.gpt import GPT
from pipeline.train.loop import Run
from pipeline.train.state import TrainState, samples_as_jsonl

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.paths import Paths


def publish(run: Run, state: TrainState, paths: Paths) -> None:
    """Evaluates the last and the best weights on all of val, then the first rank writes checkpoint and metrics.

    Raises:
        Stopping: the run was asked to stop before anything was written.
    """
    parallel, ranks = run.parallel, run.parallel.ranks
    length = run.model.config.context_length
    windows = evaluation_windows(len(run.evaluate.ids["val"]), length, length)
    weights, moments = parallel.full(run.model.state_dict()), parallel.full(run.optimizer.state_dict())
    last = best = run.evaluate.summarize("val", windows).metrics()
    if state.best_step != state.step:
        parallel.load_weights(state.best_weights)
        best = run.evaluate.summarize("val", windows).metrics()
    best_weights = parallel.full(state.best_weights) if parallel.sharded else state.best_weights
    if not ranks.first:
        return

    with (
        room_for(tensor_bytes([weights, moments, best_weights]), paths.checkpoint),
        published_folder(paths.checkpoint) as folder,
    ):
        write_atomically(folder / SAMPLES, samples_as_jsonl(state))
        write_checkpoint(
            folder,
            run.model.config,
            run.evaluate.tokenizer,
            last={"model_state_dict": weights, "optimizer_state_dict": moments, "step": state.step},
            best={"model_state_dict": best_weights, "step": state.best_step},
        )
    _write_metrics(paths.metrics, state, last, {"step": state.best_step, **best}, run.model)
    bits = f", {best['bits_per_byte']:.4f} bits a byte" if "bits_per_byte" in best else ""
    fact("best", f"step {state.best_step:,}: all of val at {best['loss']:.4f} nats a token{bits}")
    fact("wrote", f"{paths.shown(paths.checkpoint)}, {paths.shown(paths.metrics)}/train.json, history.tsv")


def _write_metrics(
    folder: Path, state: TrainState, last: dict[str, float], best: dict[str, float], model: GPT
) -> None:
    """train.json and history.tsv are the same for the same run; what depends on the clock is in the others."""
    final = state.history[-1]
    names = ("loss", "perplexity", "objective")
    write_json(
        folder / "train.json",
        {
            "steps": state.step,
            "tokens": int(final["tokens"]),
            "parameters": model.parameter_count(),
            "skipped_steps": len(state.skipped),
            "train": {name: final[f"train.{name}"] for name in names if f"train.{name}" in final},
            "val": last,
            "best": best,
        },
    )
    write_atomically(folder / "history.tsv", _tsv(state.history))
    write_atomically(folder / "timing.tsv", _tsv(state.timing))
    rate = final["tokens"] / max(state.seconds, 1e-9)
    write_json(
        folder / "performance.json",
        {
            "seconds": state.seconds,
            "processor_seconds": state.processor_seconds,
            "tokens_per_sec": rate,
            "model_flops_per_sec": rate * model.config.flops_per_token,
            "peak_memory_bytes": peak_memory(model.head_weight.device),
        },
    )


def _tsv(rows: list[dict[str, float]]) -> str:
    """A table of every column that any row has; a number that a row lacks is left empty."""
    # Step 0 has no learning rate and no gradient yet, so the order is that of the last row.
    columns = list(dict.fromkeys(name for row in reversed(rows) for name in row))
    lines = ["\t".join(columns)]
    lines += ["\t".join(repr(row[name]) if name in row else "" for name in columns) for row in rows]
    return "\n".join(lines) + "\n"
