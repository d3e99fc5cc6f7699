"""train: the GPT learns the training split; a checkpoint, metrics and their history are published at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipeline.console import fact, say
from pipeline.data.batches import TrainingWindows, evaluation_windows
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids, TokenFolder
from pipeline.errors import DataError, PluginError, raised_by
from pipeline.evaluation.nll import evenly_spaced
from pipeline.files import lock
from pipeline.model.config import GPTConfig
from pipeline.model.device import check_fits, choose_device, use_threads
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
    check_length(ids["train"], params.model.context_length)
    _check_ids(ids, splits.tokenizer.vocab_size)
    components = load_components(own, paths)

    store = StateStore(paths.resume, fingerprint(identity(components.chosen(params), splits, paths.plugins, KINDS)))
    plan = prepare(params, components, ids, splits.tokenizer, store)
    _say_plan(plan, params, ids)

    here = lock(paths.root / ".resume" / "lock", "training in this folder")
    with here, lock(store.lock_file, "training of this very run"), plan.stop.caught():
        saved = store.load()
        state = TrainState.restore(saved, plan.model, plan.optimizer) if saved else TrainState()
        _say_resumed(state, store)
        if not state.complete:
            train(plan, state)
        publish(plan, state, splits.tokenizer, ids["val"], paths)
        store.prune()


@dataclass(frozen=True)
class Components:
    """What params.yaml chose."""

    loss: Loss
    optimizer: Optimizer
    callbacks: list[EvalCallback]

    def chosen(self, params: Params) -> dict[str, Any]:
        """Every value that decides the result."""
        return {
            "model": params.model.model_dump(),
            "train": params.train.model_dump(),
            "loss": self.loss.model_dump(),
            "optimizer": self.optimizer.model_dump(),
            "eval_callbacks": [callback.model_dump() for callback in self.callbacks],
        }


def load_components(params: TrainParams, paths: Paths) -> Components:
    """The loss, the optimizer and the eval callbacks of params.yaml, with their options checked."""
    registry = Registry.load(paths.plugins, KINDS)
    loss, optimizer, callbacks = params.loss, params.optimizer, params.eval_callbacks
    return Components(
        registry.build("losses", loss.name, loss.options, "train.loss"),
        registry.build("optimizers", optimizer.name, optimizer.options, "train.optimizer"),
        registry.build_all("eval_callbacks", callbacks.use, callbacks.options, "train.eval_callbacks"),
    )


def model_config(params: Params, tokenizer: Tokenizer) -> GPTConfig:
    """The architecture that params.yaml describes, for a tokenizer's vocabulary."""
    shape = params.model.model_dump(exclude={"document_mask"})
    end = tokenizer.end_of_text if params.model.document_mask else None
    return GPTConfig(vocab_size=tokenizer.vocab_size, document_end=end, **shape)


def _optimizer(components: Components, params: TrainParams, model: GPT) -> torch.optim.Optimizer:
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


def prepare(
    params: Params, components: Components, ids: dict[str, Ids], tokenizer: Tokenizer, store: StateStore
) -> Run:
    """Everything that the loop needs: the model, how long, in which order, evaluated how, saved where."""
    own, length = params.train, params.model.context_length
    use_threads(params.runtime.threads)
    device = choose_device(params.runtime.device)
    torch.manual_seed(own.seed)
    config = model_config(params, tokenizer)
    check_fits(config, device)
    model = GPT(config).to(device)
    optimizer = _optimizer(components, own, model)
    data = TrainingWindows(ids["train"], length, own.seed, own.shift_windows)
    total_windows = _total_windows(own.budget, own.batch_size, data)
    total_steps = -(-total_windows // own.batch_size)
    evaluator = Evaluator(
        model=model,
        optimizer=optimizer,
        data=data,
        tokenizer=tokenizer,
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
        store=store,
        save_seconds=params.runtime.save_seconds,
        stop=StopSignal(),
    )


def check_length(train: Ids, context_length: int) -> None:
    """Raises DataError when the training split has not even one window."""
    if len(train) <= context_length:
        raise DataError(
            f"the training split has {len(train):,} tokens, and one window needs {context_length + 1:,} "
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


def _say_plan(plan: Run, params: Params, ids: dict[str, Ids]) -> None:
    own = params.train
    fact("read", f"{len(ids['train']):,} tokens to train on, {len(ids['val']):,} to validate on")
    size = f"{plan.model.parameter_count():,} parameters, context {params.model.context_length}"
    fact("model", f"{size}, on {plan.device}, {own.precision}")
    epochs = plan.total_windows / plan.data.per_epoch
    tokens = own.batch_size * params.model.context_length
    fact("plan", f"{plan.total_steps:,} steps of {tokens:,} tokens, {epochs:.1f} epochs")
    fact("with", f"{own.loss.name} and {own.optimizer.name}")
    if own.schedule.warmup_steps >= plan.total_steps:
        say(f"note: warm-up takes {own.schedule.warmup_steps} steps, so the learning rate never reaches its peak")


def _say_resumed(state: TrainState, store: StateStore) -> None:
    if state.complete:
        say(
            f"this very run is already complete ({store.folder}): its result is published again; "
            "`python -m pipeline clean` forgets it"
        )
    elif state.step:
        say(f"going on from step {state.step:,} ({store.folder})")
