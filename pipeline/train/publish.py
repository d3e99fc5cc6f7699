"""Publishes a finished run: artifacts/checkpoint and the metrics, the same bytes each time."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from pipeline.core.console import fact
from pipeline.core.errors import StopRequested
from pipeline.core.files import report_full_disk, write_atomically, write_json
from pipeline.core.fingerprint import fingerprint
from pipeline.core.paths import METRICS
from pipeline.core.publication import published_folder
from pipeline.model.checkpoint import SAMPLES, tensor_bytes, write_checkpoint
from pipeline.model.device import peak_memory
from pipeline.train.callbacks import evaluation_weights
from pipeline.train.evaluation import summarize
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState
from pipeline.train.steps import STEPS, table

if TYPE_CHECKING:
    from pipeline.core.paths import Paths


_LOSSES = ("loss", "perplexity")
"""The numbers of train that train.json has."""


def finalize(run: TrainingRun, state: TrainState) -> None:
    """Adds to the state of a run at its end what publishing needs: in float32, the losses of the last and the best
    weights on all of val (or `train.evaluation.final_tokens`), and of the last ones on train; the peak memory, and
    the run's record. Publishing is then a function of the state alone.

    Raises:
        StopRequested: the run was asked to stop; the state is unchanged.
    """
    identity, windows = run.phase.identity, run.data.val_windows
    # Eager, as in the stage evaluate: no recompilation for windows of other lengths.
    with run.parallel.eager(), evaluation_weights(run, state):
        train = {
            name: state.history[-1][f"train.{name}"] for name in _LOSSES if f"train.{name}" in state.history[-1]
        }
        if run.runtime_config.precision != "fp32":
            train = summarize(run, "train", run.data.eval_windows["train"], in_float32=True).metrics()
        last = best = summarize(run, "val", windows, in_float32=True).metrics()
        if state.best_step != state.step:
            trained = run.parallel.to_cpu(run.model.state_dict())
            run.parallel.load_weights(state.best_weights)
            try:
                best = summarize(run, "val", windows, in_float32=True).metrics()
            except StopRequested:  # raised on all ranks together, unlike other errors
                run.parallel.load_weights(trained)
                raise
            run.parallel.load_weights(trained)
    state.final = {
        "train": {name: train[name] for name in _LOSSES if name in train},
        "last": last,
        "best": best,
        "peak_memory_bytes": peak_memory(run.device),
        "record": {
            "params": {**run.data.data_params, **identity["params"]},
            "data": identity["data"],
            "versions": identity["versions"],
            "identity": fingerprint(identity),
        },
    }
    state.complete = True


def publish(run: TrainingRun, state: TrainState, paths: Paths) -> None:
    """Writes the checkpoint and the metrics of a complete run, on rank 0. All ranks must call it."""
    parallel = run.parallel
    with parallel.eager(), evaluation_weights(run, state):
        weights, moments = parallel.full(run.model.state_dict()), parallel.full(run.optimizer.state_dict())
    best_weights = parallel.full(state.best_weights) if parallel.sharded else state.best_weights
    if not parallel.ranks.is_rank0:
        return
    with (
        report_full_disk(tensor_bytes([weights, moments, best_weights]), paths.checkpoint),
        published_folder(paths.checkpoint, paths) as folder,
    ):
        samples = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in state.samples)
        write_atomically(folder / SAMPLES, "".join(samples))
        for name, content in _metrics(state, run).items():
            write = write_atomically if isinstance(content, str) else write_json
            write(folder / METRICS / name, content)
        write_checkpoint(
            folder,
            run.model.architecture,
            run.data.tokenizer,
            state.final["record"],
            last={"model_state_dict": weights, "optimizer_state_dict": moments, "step": state.step},
            best={"model_state_dict": best_weights, "step": state.best_step},
        )
    best = state.final["best"]
    names = {"loss": "val loss", "perplexity": "perplexity", "bits_per_byte": "bits per byte"}
    numbers = (f"{named} {best[name]:#.5g}".rstrip(".") for name, named in names.items() if name in best)
    fact("best", f"step {state.best_step:,}: {', '.join(numbers)}")
    fact("wrote", f"{paths.shown(paths.checkpoint)}, {paths.shown(paths.metrics)}/train.json, history.tsv, {STEPS}")
    if "DVC_STAGE" not in os.environ:
        fact("next", "pipeline evaluate")


_MEASURED = ("step", "tokens", "epoch", "learning_rate", "grad_norm")


def _of_callbacks(row: dict[str, float]) -> dict[str, float]:
    """The numbers of an evaluation that callbacks returned, except those named train.… or val.…."""
    numbers = {name: value for name, value in row.items() if name not in _MEASURED}
    return {name: value for name, value in numbers.items() if not name.startswith(("train.", "val."))}


def _metrics(state: TrainState, run: TrainingRun) -> dict[str, Any]:
    """The content of the metrics files, by name. train.json, history.tsv and steps.tsv are reproducible; the others
    hold what depends on the clock."""
    final = state.history[-1]
    objective = {"objective": final["train.objective"]} if "train.objective" in final else {}
    rate = final["tokens"] / max(state.seconds, 1e-9)
    return {
        "train.json": {
            "steps": state.step,
            "tokens": int(final["tokens"]),
            "parameters": run.model.architecture.parameter_count,
            "skipped_steps": len(state.skipped),
            "train": state.final["train"] | objective,
            "val": state.final["last"],
            "best": {"step": state.best_step, **state.final["best"]},
            **({"callbacks": numbers} if (numbers := _of_callbacks(final)) else {}),
        },
        "performance.json": {
            "seconds": state.seconds,
            "processor_seconds": state.processor_seconds,
            "tokens_per_sec": rate,
            "model_flops_per_sec": rate * run.model.architecture.flops_per_token,
            "peak_memory_bytes": state.final["peak_memory_bytes"],
        },
        "history.tsv": table(state.history),
        STEPS: table(state.steps),
        "timing.tsv": table(state.timing),
    }
