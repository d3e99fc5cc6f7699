"""train: the GPT learns the training split; a checkpoint, metrics and their history are published at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.console import fact, say
from pipeline.data.batches import TrainingWindows, evaluation_windows
from pipeline.data.tokens import Ids, TokenFolder
from pipeline.errors import DataError, PluginError, raised_by
from pipeline.evaluation.nll import evenly_spaced
from pipeline.files import lock
from pipeline.model.config import GPTConfig
from pipeline.model.device import choose_device, use_threads
from pipeline.model.gpt import GPT
from pipeline.plugin.components import EvalCallback, Loss, Optimizer
from pipeline.plugin.registry import Registry
from pipeline.training.evaluation import Evaluator
from pipeline.training.fingerprint import fingerprint, identity
from pipeline.training.interrupt import StopSignal
from pipeline.training.loop import Run, train
from pipeline.training.publish import publish
from pipeline.training.schedule import Schedule
from pipeline.training.state import StateStore, TrainState

if TYPE_CHECKING:
    from pipeline.params import BudgetParams, Params, TrainParams
    from pipeline.paths import Paths

KINDS = ["losses", "optimizers", "eval_callbacks"]


def run(params: Params, paths: Paths) -> None:
    """Reads artifacts/splits; writes artifacts/checkpoint and metrics/train.json, history.tsv, timing.tsv,
    performance.json. An interrupted run goes on from its last saved state."""
    own = params.train
    splits = TokenFolder(paths.splits, "run `python -m pipeline split`")
    paths.metrics.mkdir(parents=True, exist_ok=True)  # what cannot be written fails before training
    ids = {name: splits.ids(name) for name in ("train", "val")}
    _check_lengths(ids, params.model.context_length)
    _check_ids(ids, splits.tokenizer.vocab_size)
    components = _components(own, paths)

    use_threads(params.runtime.threads)
    device = choose_device(params.runtime.device)
    torch.manual_seed(own.seed)
    model = GPT(GPTConfig(vocab_size=splits.tokenizer.vocab_size, **params.model.model_dump())).to(device)
    optimizer = _optimizer(components, own, model)
    run = _plan(params, paths, splits, ids, components, model, optimizer)
    _say_plan(run, params, ids, device)

    here = lock(paths.root / ".resume" / "lock", "training in this folder")
    with here, lock(run.store.lock_file, "training of this very run"), run.stop.caught():
        saved = run.store.load()
        state = TrainState.restore(saved, model, optimizer) if saved else TrainState()
        _say_resumed(state, run.store)
        if not state.complete:
            train(run, state)
        publish(run, state, splits.tokenizer, ids["val"], paths)
        run.store.prune()


@dataclass(frozen=True)
class _Components:
    """What params.yaml chose."""

    loss: Loss
    optimizer: Optimizer
    callbacks: list[EvalCallback]


def _components(params: TrainParams, paths: Paths) -> _Components:
    registry = Registry.load(paths.plugins, KINDS)
    loss, optimizer, callbacks = params.loss, params.optimizer, params.eval_callbacks
    return _Components(
        registry.build("losses", loss.name, loss.options, "train.loss"),
        registry.build("optimizers", optimizer.name, optimizer.options, "train.optimizer"),
        registry.build_all("eval_callbacks", callbacks.use, callbacks.options, "train.eval_callbacks"),
    )


def _optimizer(components: _Components, params: TrainParams, model: GPT) -> torch.optim.Optimizer:
    """Builds the optimizer and checks that it holds every parameter once."""
    name = params.optimizer.name
    try:
        optimizer = components.optimizer.build(list(model.named_parameters()))
    except Exception as error:
        raise raised_by(f"the optimizer {name!r}", error) from error
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    own = {id(parameter) for parameter in model.parameters()}
    if len(held) != len(set(held)) or set(held) != own:
        raise PluginError(
            f"the optimizer {name!r} must hold each of the model's {len(own)} parameters exactly once"
        )
    return optimizer


def _plan(
    params: Params,
    paths: Paths,
    splits: TokenFolder,
    ids: dict[str, Ids],
    components: _Components,
    model: GPT,
    optimizer: torch.optim.Optimizer,
) -> Run:
    """Everything that the loop needs: how long, in which order, evaluated how, saved where."""
    own, length = params.train, params.model.context_length
    data = TrainingWindows(ids["train"], length, own.seed, own.shift_windows)
    total_windows = _total_windows(own.budget, own.batch_size, data)
    total_steps = -(-total_windows // own.batch_size)
    evaluator = Evaluator(
        model=model,
        optimizer=optimizer,
        data=data,
        tokenizer=splits.tokenizer,
        ids=ids,
        windows={
            name: evenly_spaced(evaluation_windows(len(tokens), length, length), own.evaluation.windows)
            for name, tokens in ids.items()
        },
        batch_size=own.micro_batch_size,
        windows_at=lambda step: min(step * own.batch_size, total_windows),
        total_steps=total_steps,
        callbacks=components.callbacks,
    )
    chosen = {
        "model": params.model.model_dump(),
        "train": own.model_dump(),
        "loss": components.loss.model_dump(),
        "optimizer": components.optimizer.model_dump(),
        "eval_callbacks": [callback.model_dump() for callback in components.callbacks],
    }
    return Run(
        model=model,
        optimizer=optimizer,
        loss=components.loss,
        data=data,
        schedule=Schedule(total_steps=total_steps, **own.schedule.model_dump()),
        total_steps=total_steps,
        total_windows=total_windows,
        batch_size=own.batch_size,
        micro_batch_size=own.micro_batch_size,
        precision=own.precision,
        grad_clip=own.grad_clip,
        evaluate_every=own.evaluation.every,
        evaluate=evaluator,
        store=StateStore(paths.resume, fingerprint(identity(chosen, splits, paths.plugins, KINDS))),
        save_seconds=params.runtime.save_seconds,
        stop=StopSignal(),
    )


def _check_lengths(ids: dict[str, Ids], context_length: int) -> None:
    if len(ids["train"]) <= context_length:
        raise DataError(
            f"the training split has {len(ids['train']):,} tokens, and one window needs {context_length + 1:,} "
            f"(model.context_length {context_length} and the token after it): lower model.context_length or bring "
            "more text"
        )


def _check_ids(ids: dict[str, Ids], vocab_size: int) -> None:
    for name, tokens in ids.items():
        largest = int(tokens.max())
        if largest >= vocab_size:
            raise DataError(
                f"the {name} split holds token id {largest}, but the vocabulary has {vocab_size}: tokenize again"
            )


def _total_windows(budget: BudgetParams, batch_size: int, data: TrainingWindows) -> int:
    if budget.unit == "epochs":
        return budget.amount * data.per_epoch
    if budget.unit == "tokens":
        return -(-budget.amount // data.context_length)
    return budget.amount * batch_size


def _say_plan(run: Run, params: Params, ids: dict[str, Ids], device: torch.device) -> None:
    own = params.train
    fact("read", f"{len(ids['train']):,} tokens to train on, {len(ids['val']):,} to validate on")
    size = f"{run.model.parameter_count():,} parameters, context {params.model.context_length}"
    fact("model", f"{size}, on {device}, {own.precision}")
    epochs = run.total_windows / run.data.per_epoch
    tokens = own.batch_size * params.model.context_length
    fact("plan", f"{run.total_steps:,} steps of {tokens:,} tokens, {epochs:.1f} epochs")
    fact("with", f"{own.loss.name} and {own.optimizer.name}")
    if own.schedule.warmup_steps >= run.total_steps:
        say(f"note: warm-up takes {own.schedule.warmup_steps} steps, so the learning rate never reaches its peak")


def _say_resumed(state: TrainState, store: StateStore) -> None:
    if state.complete:
        say(
            f"this very run is already complete ({store.folder}): its result is published again; "
            "`python -m pipeline clean` forgets it"
        )
    elif state.step:
        say(f"going on from step {state.step:,} ({store.folder})")
