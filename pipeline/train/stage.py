"""Train the GPT, or resume an interrupted run.

Writes artifacts/checkpoint and metrics/.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.core.console import fact, say
from pipeline.core.errors import CheckpointError, PipelineError, out_of_memory
from pipeline.core.republish import republished
from pipeline.core.symlinks import check_symlinks
from pipeline.distributed.interrupt import StopSignal
from pipeline.distributed.placement import process_count
from pipeline.distributed.ranks import Ranks, open_splits, started_as_rank
from pipeline.model.pretrained import Pretrained
from pipeline.model.run_record import note_other_data
from pipeline.plugin.registry import Registry
from pipeline.train import memory_check
from pipeline.train.components import KINDS as KINDS
from pipeline.train.components import Components
from pipeline.train.data import TrainingData
from pipeline.train.identity import identity
from pipeline.train.loop import train
from pipeline.train.phases import locked, newest, phases
from pipeline.train.publish import publish
from pipeline.train.run import TrainingRun
from pipeline.train.runtime_config import resolve_runtime_config
from pipeline.train.state import TrainState
from pipeline.train.teacher import Teacher

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.model.architecture import Architecture
    from pipeline.params.params import Params


class UnusableCheckpointError(CheckpointError):
    """The newest training checkpoint does not fit the run. It is set aside; a retry loads the one before it."""


def run(params: Params, paths: Paths) -> None:
    """Reads artifacts/splits; writes artifacts/checkpoint and metrics/train.json, history.tsv, steps.tsv,
    timing.tsv, performance.json. An interrupted run resumes from its last training checkpoint.

    Raises:
        Interrupted: on SIGINT or SIGTERM; the run is saved.
        PipelineError: params, data, plugins or the machine do not allow this run, or training failed.
    """
    processes = process_count(params.runtime)
    if processes == 1 and not started_as_rank():
        while True:
            try:
                _train(params, paths, Ranks())
                return
            except UnusableCheckpointError as error:
                say(f"{error}; trying the previous one")
    from pipeline.distributed.launch import run_on_ranks

    Components.load(params, paths.plugins, Registry.load(paths.plugins, KINDS, lambda note: None))  # fail at once
    run_on_ranks("train", lambda ranks: _train(params, paths, ranks), params, processes, resumes=True)


def _train(params: Params, paths: Paths, ranks: Ranks) -> None:
    splits = open_splits(paths.splits, ranks)
    paths.metrics.mkdir(parents=True, exist_ok=True)  # fail before training if it cannot be written
    components = Components.load(params, paths.plugins)
    data = TrainingData.read(params, splits, components.batch_sampler)
    if ranks.is_rank0:
        note_other_data(splits, params, paths)
    architecture = components.architecture(params.model, data.tokenizer)
    start = pretrained(params, architecture, data.tokenizer, paths)
    teacher = Teacher.of(components.loss, paths.root)
    run_identity = identity(
        params, components, data, start.digest(data.tokenizer) if start else "", teacher.digest if teacher else ""
    )
    run_phases = phases(
        params.train, components.schedule, data.windows, architecture.flops_per_token, run_identity, paths.resume
    )
    ranks.check_same(run_phases[-1].store.folder.name, "other params, data, code, plugins or versions")

    stop = StopSignal()
    with locked(run_phases, paths, ranks), stop.caught():
        if ranks.on_rank0(lambda: republished("train", paths.checkpoint, run_phases[-1].store.folder.name, paths)):
            return
        number, saved = newest(run_phases, ranks, architecture)
        earlier = saved["run"]["runtime_config"] if saved else {}
        flops = run_phases[-1].length.total_windows * params.model.context_length * architecture.flops_per_token
        runtime_config = resolve_runtime_config(params, ranks, earlier, flops, architecture)
        training_run = TrainingRun.build(
            params, components, data, run_phases[-1], runtime_config, ranks, stop, teacher=teacher
        )
        try:
            state = TrainState.restore(saved, training_run) if saved else TrainState()
        except CheckpointError as error:
            aside = ranks.on_rank0(run_phases[number].store.set_aside)
            raise UnusableCheckpointError(f"{error}: the training checkpoint was moved to {aside}") from None
        if start is not None:
            new = ", ".join(start.new_tokens(data.tokenizer))
            fact("weights", f"pretrained, from {start.name}{new and f'; new, at the mean of all: {new}'}")
            if not saved:
                weights = ranks.on_rank0(
                    lambda: start.weights(architecture, data.tokenizer), to_others=lambda weights: {}
                )
                training_run.parallel.load_weights(weights)
        _say_plan(training_run, params)
        _say_resumed(training_run.for_phase(run_phases[number]), state, runtime_config.differences(earlier))
        state.runtime_config = asdict(runtime_config)
        try:
            for phase in run_phases[number:]:
                _train_phase(training_run.for_phase(phase), state, extends=phase is not run_phases[number])
            publish(training_run, state, paths)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            advice = memory_check.out_of_memory_advice(
                architecture,
                training_run.micro_batch_size,
                training_run.optimizer,
                training_run.device,
                runtime_config.strategy,
                ranks.world_size,
                runtime_config.recompute,
            )
            raise PipelineError(advice) from None
        if ranks.is_rank0:
            training_run.phase.store.prune()


def pretrained(params: Params, architecture: Architecture, tokenizer: Tokenizer, paths: Paths) -> Pretrained | None:
    """The pretrained weights of `train.init_from`, checked against params and tokenizer; None for random weights.

    Raises:
        ParamsError, CheckpointError, DataError: they are missing, corrupt, or belong to another model or tokenizer.
    """
    if not params.train.init_from:
        return None
    check_symlinks(paths.root / "data")
    start = Pretrained.at(paths.root, params.train.init_from)
    start.check(architecture, tokenizer)
    return start


def _train_phase(run: TrainingRun, state: TrainState, extends: bool) -> None:
    """Trains to the end of a phase; `extends` is true if `state` is the end of the previous phase."""
    if extends and state.complete and state.step < run.total_steps:
        if state.stop_reason:
            raise PipelineError(
                f"train.extension: a callback ended the first phase at step {state.step:,} ({state.stop_reason}): "
                "remove that callback from train.eval_callbacks.use, or set train.extension.amount: 0"
            )
        say(f"extending the finished run from step {state.step:,} to {run.total_steps:,}")
        state.complete = False
    if not state.complete:
        train(run, state)


def _say_plan(run: TrainingRun, params: Params) -> None:
    train, runtime_config = params.train, run.runtime_config
    ids, learnt = run.data.ids, run.data.learnt
    fact("read", f"{len(ids['train']):,} tokens to train on, {len(ids['val']):,} to validate on")
    if learnt:
        fact("learns", f"{learnt['train']:,} and {learnt['val']:,} of them; the others are only read")
    if train.pack_documents:
        windows, index = run.data.windows.per_epoch, run.data.windows.index
        share = (sum(index.ends or ()) - sum(index.text.starts)) / (windows * (params.model.context_length + 1))
        fact("packs", f"{windows:,} windows of whole documents, {share:.0%} full")
    size = f"{run.model.architecture.parameter_count:,} parameters, context {params.model.context_length}"
    together = (
        f", {runtime_config.processes} processes ({runtime_config.strategy})"
        if runtime_config.processes > 1
        else ""
    )
    how = {"no": "", "blocks": ", compiled", "model": ", compiled as a whole"}[runtime_config.compile]
    how += ", activations recomputed" if runtime_config.recompute else ""
    fact("model", f"{size}, on {run.device}{together}, {runtime_config.precision}{how}")
    epochs = run.length.total_windows / run.data.windows.per_epoch
    tokens = min(train.batch_size, max(run.length.phase_windows)) * params.model.context_length
    fact("plan", f"{run.total_steps:,} steps of {tokens:,} tokens, {epochs:.1f} epochs")
    fact("with", f"{train.loss.name} and {train.optimizer.name}")
    say_long_warmup(train.schedule.warmup_steps, run.total_steps)


def say_long_warmup(warmup_steps: int, total_steps: int) -> None:
    """Prints a note if the warm-up takes all steps of the run."""
    if warmup_steps >= total_steps:
        say(
            f"note: train.schedule.warmup_steps is {warmup_steps}, but there are only {total_steps} steps: the "
            "learning rate never reaches its peak"
        )


def _say_resumed(run: TrainingRun, state: TrainState, differences: list[str]) -> None:
    folder = run.phase.store.folder
    if state.complete:
        say(
            f"this run is already complete ({folder}): publishing its result again; to train it anew, delete its "
            "checkpoints with `python -m pipeline clean`"
        )
        return
    if state.step:
        say(f"resuming from step {state.step:,} ({folder})")
    if differences:
        say(
            f"note: the run started with another runtime ({'; '.join(differences)}): its result may differ in the "
            "last bits from that of an uninterrupted run"
        )
