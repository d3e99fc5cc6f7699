"""train: the GPT learns the training split; a checkpoint, metrics and their history are published at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.console import fact, say
from pipeline.core.errors import DataError, Interrupted, PipelineError, PluginError, out_of_memory, raised_by
from pipeline.data.batches import TrainingWindows, evaluation_windows
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids, TokenFolder
from pipeline.model.config import GPTConfig
from pipeline.model.device import choose_device, keep_memory, use_threads
from pipeline.model.gpt import GPT
from pipeline.model.pretrained import Pretrained
from pipeline.model.scoring import evenly_spaced
from pipeline.plugin.components import EvalCallback, Loss, Optimizer
from pipeline.plugin.registry import Registry
from pipeline.train import memory_check
from pipeline.train.conditions import Conditions, choose, process_count
from pipeline.train.distributed.launch import launch, reported
from pipeline.train.distributed.parallel import spread
from pipeline.train.distributed.ranks import Ranks, joined, ranks_here
from pipeline.train.evaluation import Evaluator
from pipeline.train.identity import fingerprint, identity
from pipeline.train.interrupt import Stopping, StopSignal
from pipeline.train.length import Length
from pipeline.train.loop import Run, train
from pipeline.train.phases import Leg, for_leg, lengths, locked, newest
from pipeline.train.publish import publish
from pipeline.train.state import TrainState
from pipeline.train.store import Saver, StateStore

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import Params, TrainParams

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
    start = beginning(params, splits.tokenizer, paths)
    data = TrainingWindows(ids["train"], params.model.context_length, own.seed, own.shift_windows)
    legs = [
        Leg(length, schedule, StateStore(paths.resume, fingerprint(what)), what)
        for length, schedule, what in zip(
            *lengths(own, data), _identities(params, components, splits, paths, start), strict=True
        )
    ]
    ranks.same(legs[-1].store.folder.name, "other params, data, code, plugins or versions")

    stop = StopSignal()
    with locked(legs, paths, ranks), stop.caught():
        begun, saved = newest(legs, ranks)
        earlier = saved["run"]["conditions"] if saved else {}
        conditions = choose(params, ranks, earlier, total_flops(params, legs[-1].length, splits.tokenizer))
        plan = prepare(params, components, ids, splits.tokenizer, legs[-1], conditions, ranks, stop)
        state = TrainState.restore(saved, plan.parallel, plan.optimizer) if saved else TrainState()
        if start is not None:
            fact("begins", f"with the weights of {start.name}")
            if not saved:
                _load(start, plan)
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
            advice = memory_check.what_to_lower(
                plan.model.config, plan.at_once, plan.optimizer, plan.device, conditions.strategy, ranks.count
            )
            raise PipelineError(advice) from None
        if ranks.first:
            legs[-1].store.prune()


def _identities(
    params: Params, components: Components, splits: TokenFolder, paths: Paths, start: Pretrained | None
) -> Iterator[dict[str, Any]]:
    """What decides each leg's result: that of the first is the same whether or not it is extended."""
    chosen = components.chosen(params)
    extension = chosen["train"].pop("extension")
    whole = identity(chosen, splits, paths.plugins, KINDS)
    if start is not None:
        whole["weights"] = start.digest
    yield whole
    if params.train.extension.amount:
        yield {**whole, "params": {**chosen, "train": {**chosen["train"], "extension": extension}}}


def beginning(params: Params, tokenizer: Tokenizer, paths: Paths) -> Pretrained | None:
    """The weights that training begins with, which fit params and tokenizer; None for random ones."""
    if not params.train.init_from:
        return None
    start = Pretrained.at(paths.root, params.train.init_from)
    start.check(model_config(params, tokenizer), tokenizer)
    return start


def _load(start: Pretrained, plan: Run) -> None:
    """Deals out the weights, which the first rank alone reads."""
    held: list[dict[str, torch.Tensor]] = []
    plan.parallel.ranks.from_first(lambda: held.append(start.weights(plan.model.config)))
    plan.parallel.load_weights(held[0] if held else {})


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
    family = params.model.family
    others = set() if family == "llama" else {"n_kv_heads", "mlp_dim", "rope_theta", "norm_eps"}
    shape = params.model.model_dump(exclude={"document_mask", *others})
    if family == "modern":
        shape |= {"tied_head": False, "init": "modern"}
    if family != "gpt2":
        shape["qkv_bias"] = False
    end = tokenizer.end_of_text if params.model.document_mask else None
    return GPTConfig(vocab_size=tokenizer.vocab_size, document_end=end, **shape)


def total_flops(params: Params, length: Length, tokenizer: Tokenizer) -> float:
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
    memory_check.check_fits(config, device, conditions.strategy, ranks.count)
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
