"""train: the GPT learns the training split; a checkpoint, metrics and their history are published at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pipeline.console import fact, say
from pipeline.data.batches import TrainingWindows, evaluation_windows
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids, TokenFolder
from pipeline.errors import DataError, Interrupted, PipelineError, PluginError, out_of_memory, raised_by
from pipeline.evaluation.nll import evenly_spaced
from pipeline.files import lock
from pipeline.model import memory
from pipeline.model.config import GPTConfig
from pipeline.model.device import choose_device, keep_memory, use_threads
from pipeline.model.gpt import GPT
from pipeline.plugin.components import EvalCallback, Loss, Optimizer
from pipeline.plugin.registry import Registry
from pipeline.training.conditions import Conditions, choose, process_count
from pipeline.training.distributed import Ranks, joined, ranks_here
from pipeline.training.evaluation import Evaluator
from pipeline.training.fingerprint import changes, fingerprint, identity
from pipeline.training.interrupt import Stopping, StopSignal
from pipeline.training.launch import launch, reported
from pipeline.training.length import Length
from pipeline.training.loop import Run, train
from pipeline.training.parallel import spread
from pipeline.training.publish import publish
from pipeline.training.schedule import Schedule, extended
from pipeline.training.state import TrainState, skeleton
from pipeline.training.store import Saver, StateStore

if TYPE_CHECKING:
    from pipeline.params import BudgetParams, Params, TrainParams
    from pipeline.paths import Paths

KINDS = ["losses", "optimizers", "eval_callbacks"]


def run(params: Params, paths: Paths) -> None:
    """Reads artifacts/splits; writes artifacts/checkpoint and metrics/train.json, history.tsv, timing.tsv,
    performance.json. An interrupted run goes on from its last saved state."""
    ranks = ranks_here()
    if ranks is None and process_count(params.runtime) > 1:
        launch(params, process_count(params.runtime))
        return
    ranks = ranks or Ranks()
    on_gpus = choose_device(params.runtime.device).type == "cuda"
    with reported(), joined(ranks, on_gpus):
        _run(params, paths, ranks)


def _run(params: Params, paths: Paths, ranks: Ranks) -> None:
    own = params.train
    splits = TokenFolder(paths.splits, "run `python -m pipeline split`")
    paths.metrics.mkdir(parents=True, exist_ok=True)  # what cannot be written fails before training
    ids = {name: splits.ids(name) for name in ("train", "val")}
    check_length(ids["train"], params.model.context_length)
    _check_ids(ids, splits.tokenizer.vocab_size)
    components = load_components(own, paths)
    data = TrainingWindows(ids["train"], params.model.context_length, own.seed, own.shift_windows)
    legs = [
        Leg(length, schedule, StateStore(paths.resume, fingerprint(what)), what)
        for length, schedule, what in zip(
            *lengths(own, data), _identities(params, components, splits, paths), strict=True
        )
    ]
    ranks.same(legs[-1].store.folder.name, "other params, data, code, plugins or versions")

    stop = StopSignal()
    with _locked(legs, paths, ranks), stop.caught():
        begun, saved = _newest(legs, ranks)
        earlier = saved["run"]["conditions"] if saved else {}
        conditions = choose(params, ranks, earlier, work(params, legs[-1].length, splits.tokenizer))
        plan = prepare(params, components, ids, splits.tokenizer, legs[-1], conditions, ranks, stop)
        state = TrainState.restore(saved, plan.parallel, plan.optimizer) if saved else TrainState()
        _say_plan(plan, params, ids, conditions)
        _say_resumed(state, legs[begun].store, conditions.differences(earlier))
        state.conditions = conditions.to_dict()
        try:
            for leg in legs[begun:]:
                state = _train_leg(for_leg(plan, leg), state, extends=leg is not legs[0])
            _publish(plan, state, paths)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise PipelineError(_memory_advice(plan, conditions)) from None
        if ranks.first:
            legs[-1].store.prune()


@dataclass(frozen=True)
class Leg:
    """A whole run from its first step to an end: the run itself, or, where it is extended, each of both ends.

    Attributes:
        length, schedule: How long it is, and the learning rate's multiplier at each step.
        store: Where its states lie.
        identity: Everything that decides its result.
    """

    length: Length
    schedule: Callable[[int], float]
    store: StateStore
    identity: dict[str, Any]


def lengths(own: TrainParams, data: TrainingWindows) -> tuple[list[Length], list[Callable[[int], float]]]:
    """How long each leg is, and its schedule."""
    first = Length(own.batch_size, (_windows(own.budget, own.budget.amount, own.batch_size, data),))
    schedule = Schedule(total_steps=first.total_steps, **own.schedule.model_dump())
    if not own.extension.amount:
        return [first], [schedule]
    further = _windows(own.budget, own.extension.amount, own.batch_size, data)
    whole = replace(first, parts=(*first.parts, further))
    steps = whole.total_steps - first.total_steps
    return [first, whole], [schedule, extended(schedule, steps, own.extension.peak)]


def _identities(
    params: Params, components: Components, splits: TokenFolder, paths: Paths
) -> Iterator[dict[str, Any]]:
    """What decides each leg's result: that of the first is the same whether or not it is extended."""
    chosen = components.chosen(params)
    extension = chosen["train"].pop("extension")
    whole = identity(chosen, splits, paths.plugins, KINDS)
    yield whole
    if params.train.extension.amount:
        yield {**whole, "params": {**chosen, "train": {**chosen["train"], "extension": extension}}}


@contextmanager
def _locked(legs: list[Leg], paths: Paths, ranks: Ranks) -> Iterator[None]:
    """One writer: of this folder's outputs, and of each leg's states, wherever it runs."""
    with ExitStack() as held:

        def take() -> None:
            held.enter_context(lock(paths.root / ".resume" / "lock", "training in this folder"))
            for leg in legs:
                held.enter_context(lock(leg.store.lock_file, "training of this very run"))

        ranks.from_first(take)
        yield


def _newest(legs: list[Leg], ranks: Ranks) -> tuple[int, dict[str, Any] | None]:
    """The leg to go on with, and its newest state; ranks but the first get its skeleton."""
    found: list[tuple[int, dict[str, Any] | None]] = []

    def look() -> tuple[int, Any]:
        found.append(_load(legs))
        number, saved = found[0]
        return number, skeleton(saved) if saved else None

    told = ranks.from_first(look)
    return found[0] if found else told


def _load(legs: list[Leg]) -> tuple[int, dict[str, Any] | None]:
    """The leg to go on with, and its newest state; where there is none, says what changed since the run before."""
    before = legs[-1].store.identify(legs[-1].identity)
    for number in reversed(range(len(legs))):
        saved = legs[number].store.load()
        if saved:
            return number, saved
    changed = changes(before, legs[-1].identity) if before else []
    if changed:
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        say(f"starting afresh, since this is not the run before: {'; '.join(changed[:6])}{more}")
    return 0, None


def _train_leg(plan: Run, state: TrainState, extends: bool) -> TrainState:
    if state.complete and state.step < plan.total_steps and extends:
        if state.stopped:
            raise PipelineError(
                f"train.extension: the run to extend was ended at step {state.step:,} ({state.stopped}): take what "
                "ended it out of train.eval_callbacks.use, or set train.extension.amount: 0"
            )
        say(f"extending the finished run from step {state.step:,} to {plan.total_steps:,}")
        state.complete = False
    if not state.complete:
        train(plan, state)
    return state


def _memory_advice(plan: Run, conditions: Conditions) -> str:
    """What to lower, with an estimate, when memory ran out."""
    state = memory.bytes_per_parameter(plan.optimizer) or 8.0
    return memory.out_of_memory(
        plan.model.config,
        plan.at_once,
        plan.precision,
        plan.device,
        state,
        conditions.strategy,
        conditions.processes,
    )


def _publish(plan: Run, state: TrainState, paths: Paths) -> None:
    try:
        publish(plan, state, paths)
    except Stopping as stopping:
        raise Interrupted(
            stopping.number, "training is complete but not published; run it again to publish it"
        ) from None


@dataclass(frozen=True)
class Components:
    """What params.yaml chose."""

    loss: Loss
    optimizer: Optimizer
    callbacks: list[EvalCallback]

    def chosen(self, params: Params) -> dict[str, Any]:
        """Every value that decides the result, those that params.yaml leaves to a component's default included."""
        return {
            "model": params.model.model_dump(mode="json"),
            "train": params.train.model_dump(mode="json"),
            "components": {
                "loss": self.loss.model_dump(mode="json"),
                "optimizer": self.optimizer.model_dump(mode="json"),
                "eval_callbacks": [callback.model_dump(mode="json") for callback in self.callbacks],
            },
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
    if params.model.family == "modern":
        shape |= {"qkv_bias": False, "tied_head": False, "init": "modern"}
    end = tokenizer.end_of_text if params.model.document_mask else None
    return GPTConfig(vocab_size=tokenizer.vocab_size, document_end=end, **shape)


def work(params: Params, length: Length, tokenizer: Tokenizer) -> float:
    """Floating-point operations of a whole run."""
    tokens = length.total_windows * params.model.context_length
    return tokens * model_config(params, tokenizer).flops_per_token


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
    params: Params,
    components: Components,
    ids: dict[str, Ids],
    tokenizer: Tokenizer,
    leg: Leg,
    conditions: Conditions,
    ranks: Ranks,
    stop: StopSignal,
) -> Run:
    """Everything that the loop needs: the model, how long, in which order, evaluated how, saved where."""
    own, length = params.train, params.model.context_length
    use_threads(conditions.threads)
    if params.runtime.keep_memory:
        keep_memory()
    torch.manual_seed(own.seed)
    config, device = model_config(params, tokenizer), torch.device(conditions.device)
    memory.check_fits(config, device, conditions.strategy, ranks.count)
    parallel = spread(lambda: GPT(config), device, ranks, conditions.strategy, conditions.compile)
    if parallel.sharded and not components.optimizer.works_on_shards:
        raise PluginError(
            f"the optimizer {own.optimizer.name!r} does not work on shares of a tensor: choose another one, or "
            "runtime.strategy: ddp"
        )
    optimizer = _optimizer(components, own, parallel.model)
    data = TrainingWindows(ids["train"], length, own.seed, own.shift_windows)
    evaluator = Evaluator(
        parallel=parallel,
        optimizer=optimizer,
        data=data,
        tokenizer=tokenizer,
        ids=ids,
        windows={
            name: evenly_spaced(evaluation_windows(len(tokens), length, length), own.evaluation.windows)
            for name, tokens in ids.items()
        },
        batch_size=own.micro_batch_size,
        length=leg.length,
        callbacks=components.callbacks,
        stop=stop,
    )
    return Run(
        parallel=parallel,
        optimizer=optimizer,
        loss=components.loss,
        data=data,
        seed=own.seed,
        schedule=leg.schedule,
        length=leg.length,
        micro_batch_size=own.micro_batch_size,
        precision=conditions.precision,
        grad_clip=own.grad_clip,
        skip_bad_steps=own.skip_bad_steps,
        evaluate_every=own.evaluation.every,
        evaluate=evaluator,
        saver=Saver(leg.store, params.runtime.save_seconds, leg.length.total_steps, parallel.writers),
        stop=stop,
    )


def for_leg(plan: Run, leg: Leg) -> Run:
    """The same run up to the end of a leg."""
    return replace(
        plan,
        schedule=leg.schedule,
        length=leg.length,
        evaluate=replace(plan.evaluate, length=leg.length),
        saver=replace(plan.saver, store=leg.store, total_steps=leg.length.total_steps),
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


def _windows(budget: BudgetParams, amount: int, batch_size: int, data: TrainingWindows) -> int:
    """The windows that an amount in the budget's unit stands for."""
    if budget.unit == "epochs":
        return amount * data.per_epoch
    if budget.unit == "tokens":
        return -(-amount // data.context_length)
    return amount * batch_size


def _say_plan(plan: Run, params: Params, ids: dict[str, Ids], conditions: Conditions) -> None:
    own = params.train
    fact("read", f"{len(ids['train']):,} tokens to train on, {len(ids['val']):,} to validate on")
    size = f"{plan.model.parameter_count():,} parameters, context {params.model.context_length}"
    together = f", {conditions.processes} processes ({conditions.strategy})" if conditions.processes > 1 else ""
    compiled = ", compiled" if conditions.compile else ""
    fact("model", f"{size}, on {plan.device}{together}, {conditions.precision}{compiled}")
    epochs = plan.length.total_windows / plan.data.per_epoch
    tokens = own.batch_size * params.model.context_length
    fact("plan", f"{plan.total_steps:,} steps of {tokens:,} tokens, {epochs:.1f} epochs")
    fact("with", f"{own.loss.name} and {own.optimizer.name}")
    if own.schedule.warmup_steps >= plan.total_steps:
        say(f"note: warm-up takes {own.schedule.warmup_steps} steps, so the learning rate never reaches its peak")


def _say_resumed(state: TrainState, store: StateStore, differences: list[str]) -> None:
    if state.complete:
        say(
            f"this very run is already complete ({store.folder}): its result is published again; "
            "`python -m pipeline clean` forgets it"
        )
        return
    if state.step:
        say(f"going on from step {state.step:,} ({store.folder})")
    if differences:
        say(
            f"note: the run goes on under other conditions than it began with ({'; '.join(differences)}): its last "
            "bits may differ from those of an uninterrupted run"
        )
