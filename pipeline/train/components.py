"""The components of a training run: model, loss, optimizer, schedule, batch sampler and eval callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.errors import ParamsError, PluginError
from pipeline.core.values import explain
from pipeline.distributed.placement import process_count
from pipeline.model.architecture import Architecture
from pipeline.model.optimizers import use_plain_optimizers
from pipeline.plugin.calls import calling, guarded, label, supported_arguments
from pipeline.plugin.components import (
    BatchSampler,
    Component,
    EvalCallback,
    Loss,
    Model,
    ModelOutput,
    ModelShape,
    Optimizer,
    Schedule,
)
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.params.params import ModelParams, Params

KINDS = ["models", "losses", "optimizers", "schedules", "batch_samplers", "eval_callbacks"]


@dataclass(frozen=True)
class Components:
    """The components that params.yaml chooses, with their options.

    Attributes:
        plugins: The project's plugins folder.
        sources: The files of the components that decide the result: all but callbacks with `records_only`.
        packages: Versions of the installed packages that bring such components.
    """

    model: Model
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    batch_sampler: BatchSampler
    callbacks: tuple[EvalCallback, ...]
    plugins: Path = Path("plugins")
    sources: tuple[Path, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)

    def callbacks_with(self, method: str) -> tuple[EvalCallback, ...]:
        """The callbacks that implement `method`, in order."""
        return tuple(each for each in self.callbacks if each.has(method))

    @classmethod
    def load(cls, whole: Params, plugins: Path, registry: Registry | None = None) -> Components:
        """Builds the components that the params name; `registry` defaults to the installed and project plugins.

        Raises:
            ParamsError, PluginError: a component is unknown, an option is invalid, or they do not fit together.
        """
        use_plain_optimizers()
        registry = registry or Registry.load(plugins, KINDS)
        kinds = {
            "model": "models",
            "loss": "losses",
            "optimizer": "optimizers",
            "schedule": "schedules",
            "batch_sampler": "batch_samplers",
        }
        built = {field: registry.chosen(kind, whole)[0] for field, kind in kinds.items()}
        callbacks = registry.chosen("eval_callbacks", whole)
        deciding = [(kind, built[field].name) for field, kind in kinds.items()]
        deciding += [("eval_callbacks", each.name) for each in callbacks if not each.records_only]
        givers = [each.name for each in callbacks if each.has("eval_weights")]
        if len(givers) > 1:
            raise ParamsError(
                f"train.eval_callbacks.use: {' and '.join(givers)} both have eval_weights, but only one "
                "callback can give the weights to evaluate: remove the others"
            )
        if whole.runtime.strategy == "fsdp" and process_count(whole.runtime) > 1:
            _check_sharding(built["optimizer"])
        sources, packages = registry.origins(deciding)
        return cls(**built, callbacks=tuple(callbacks), plugins=plugins, sources=sources, packages=packages)

    def architecture(self, params: ModelParams, tokenizer: Tokenizer) -> Architecture:
        """The architecture that the section `model` describes, for a tokenizer's vocabulary.

        Raises:
            ParamsError: the sizes do not fit together, or the mask would part the turns of a conversation.
        """
        sizes = params.sizes
        end = tokenizer.end_of_text if sizes.pop("document_mask") else None
        if end is not None and tokenizer.chat_template and tokenizer.chat.end_of_turn == tokenizer.end:
            raise ParamsError(
                f"model.document_mask: the chat template ends turns with {tokenizer.end}, the end-of-text token, "
                "so no turn would see those before it: set model.document_mask: false, or another "
                "tokenize.tokenizer.file.end_of_text, which is added"
            )
        try:
            shape = ModelShape(vocab_size=tokenizer.vocab_size, document_end=end, **sizes)
        except ValueError as error:
            raise ParamsError(f"model: {explain(error)}") from None
        return Architecture(self.model, shape)

    def effective(self, params: Params) -> dict[str, Any]:
        """The part of the sections `model` and `train` that decides the result: with all options of the chosen
        components, defaults included, and without `log_every` and callbacks that have `records_only`."""
        train = params.train.model_dump(mode="json", exclude={"log_every"}) | {
            "schedule": {"warmup_steps": params.train.schedule.warmup_steps, **_chosen(self.schedule)},
            "batch_sampler": _chosen(self.batch_sampler),
            "loss": _chosen(self.loss),
            "optimizer": _chosen(self.optimizer),
        }
        deciding = [each for each in self.callbacks if not each.records_only]
        options = {each.name: plain_options(each) for each in deciding}
        train |= {"eval_callbacks": {"use": [each.name for each in deciding], **options}}
        return {"model": params.model.sizes | _chosen(self.model), "train": train}

    def nats(self, output: ModelOutput, targets: torch.Tensor, **offered: Any) -> torch.Tensor:
        """The training loss in nats [B, T]. The loss gets those of the `offered` keyword arguments that it accepts.

        Raises:
            PluginError: it returned something else, which would silently train on another scale.
        """
        loss = self.loss
        with calling(loss):
            nats = loss(output, targets, **supported_arguments(loss, "__call__", **offered))
            if not isinstance(nats, torch.Tensor) or nats.shape != targets.shape:
                got = list(nats.shape) if isinstance(nats, torch.Tensor) else type(nats).__name__
                raise PluginError(
                    f"{label(loss)} returned {got}, not one number per target, [B, T] = "
                    f'{list(targets.shape)}: use reduction="none" and .view(targets.shape)'
                )
            if not nats.is_floating_point() or nats.device != targets.device:
                raise PluginError(
                    f"{label(loss)} returned {nats.dtype} on {nats.device}, not floating point on {targets.device}"
                )
            if not nats.requires_grad:
                raise PluginError(
                    f"{label(loss)} returned nats without a gradient: compute them from output.logits, "
                    "without detach() or no_grad()"
                )
        return nats

    def build_optimizer(self, model: torch.nn.Module, sharded: bool, total_steps: int) -> torch.optim.Optimizer:
        """Builds the optimizer over all parameters of `model`, for a run of `total_steps`, in train mode if it has
        modes.

        Raises:
            ParamsError: it does not support shards.
            PluginError: it cannot be built, or does not hold each parameter exactly once.
        """
        if sharded:
            _check_sharding(self.optimizer)
        with calling(self.optimizer):
            more = supported_arguments(self.optimizer, "build", total_steps=total_steps)
            optimizer = self.optimizer.build(list(model.named_parameters()), **more)
            _check_optimizer(optimizer, self.optimizer, model)
        _guard(optimizer, self.optimizer)
        set_mode(optimizer, "train")
        return optimizer


def _check_sharding(optimizer: Optimizer) -> None:
    if not optimizer.works_on_shards:
        raise ParamsError(
            f"train.optimizer.name: {optimizer.name} needs whole parameters, but with runtime.strategy: fsdp each "
            "process holds a part of every one: choose another optimizer, or set runtime.strategy: ddp"
        )


def set_mode(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Calls the optimizer's `train()` or `eval()`, if it has them. Optimizers that average weights do: in train
    mode the parameters differ from the averages."""
    if has_modes(optimizer):
        getattr(optimizer, mode)()


def has_modes(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer has `train()` and `eval()`."""
    return hasattr(optimizer, "train") and hasattr(optimizer, "eval")


def _check_optimizer(built: Any, component: Optimizer, model: torch.nn.Module) -> None:
    """Raises PluginError if `build` returned something that cannot train `model`."""
    where = label(component)
    if not isinstance(built, torch.optim.Optimizer):
        raise PluginError(f"{where}: build must return a torch.optim.Optimizer, not {type(built).__name__}")
    held = [id(parameter) for group in built.param_groups for parameter in group["params"]]
    wanted = {id(parameter) for parameter in model.parameters()}
    if len(held) != len(set(held)) or set(held) != wanted:
        raise PluginError(
            f"{where} must hold each of the model's {len(wanted)} parameters exactly once: it holds {len(held)}, "
            f"of which {len(set(held) & wanted)} are the model's"
        )
    if hasattr(built, "train") != hasattr(built, "eval"):
        raise PluginError(f"{where} has only one of train() and eval(): define both")
    _check_rates(built, component)


def _check_rates(optimizer: torch.optim.Optimizer, component: Optimizer) -> None:
    for group in optimizer.param_groups:
        rate = group.get("lr")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not math.isfinite(rate):
            raise PluginError(
                f"{label(component)}: each group needs a finite number as lr, not {rate!r}: the schedule "
                f"multiplies it"
            )


def _guard(optimizer: torch.optim.Optimizer, component: Optimizer) -> None:
    """Wraps the optimizer's methods: their errors name the component; rates and state dict are checked."""
    step, state_dict = optimizer.step, optimizer.state_dict

    def checked_step(closure: None = None) -> None:
        step()
        _check_rates(optimizer, component)

    def checked_state_dict() -> dict[str, Any]:
        state = state_dict()
        if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
            raise PluginError(f"{label(component)}: state_dict must return a dict with `state` and `param_groups`")
        check_plain(state, f"{label(component)}: its state_dict")
        return state

    methods: dict[str, Callable[..., Any]] = {"step": checked_step, "state_dict": checked_state_dict}
    methods |= {"zero_grad": optimizer.zero_grad, "load_state_dict": optimizer.load_state_dict}
    methods |= {name: getattr(optimizer, name) for name in ("train", "eval") if has_modes(optimizer)}
    for name, method in methods.items():
        setattr(optimizer, name, guarded(method, component))


_PLAIN = (str, bytes, bool, int, float, type(None), torch.Size, torch.dtype, torch.device)


def check_plain(value: Any, what: str) -> None:
    """Raises PluginError if `value` holds more than plain values and detached tensors: only these can be loaded
    without running code. `what` names it in the message."""
    if isinstance(value, dict):
        for each in (*value.keys(), *value.values()):
            check_plain(each, what)
    elif type(value) in (list, tuple):
        for each in value:
            check_plain(each, what)
    elif (isinstance(value, torch.Tensor) and value.requires_grad) or (
        type(value) not in _PLAIN and not isinstance(value, torch.Tensor)
    ):
        raise PluginError(
            f"{what} holds a {type(value).__name__}, which a checkpoint cannot hold: use numbers, str, lists and "
            "dicts of them, and tensors without a gradient"
        )


def _chosen(component: Component) -> dict[str, Any]:
    """A choice in the form of params.yaml: the component's name, and its options under it."""
    return {"name": component.name, component.name: plain_options(component)}
