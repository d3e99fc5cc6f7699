"""The components that a training run uses: model, loss, optimizer, schedule, batch sampler, eval callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.errors import ParamsError, PluginError
from pipeline.core.values import explain
from pipeline.model.architecture import Architecture
from pipeline.plugin.calls import calling, guarded, label, supported_arguments
from pipeline.plugin.components import (
    CALLBACK_METHODS,
    BatchSampler,
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
    from pipeline.params.params import ModelParams, Params, TrainParams

KINDS = ["models", "losses", "optimizers", "schedules", "batch_samplers", "eval_callbacks"]


@dataclass(frozen=True)
class Components:
    """What params.yaml chose, with its options.

    Attributes:
        model, loss, optimizer, schedule, batch_sampler, callbacks: The components.
        plugins: The project's folder of plugins.
        sources: The files that register those components that decide the result: not callbacks that only record.
        packages: Versions of the installed packages among them.
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
        """The callbacks that have this method, in their order."""
        return self._callbacks[method]

    @cached_property
    def _callbacks(self) -> dict[str, tuple[EvalCallback, ...]]:
        return {method: tuple(each for each in self.callbacks if each.has(method)) for method in CALLBACK_METHODS}

    @classmethod
    def load(cls, whole: Params, plugins: Path, registry: Registry | None = None) -> Components:
        """The components that the params name, with their options checked; `registry` is one already loaded."""
        registry, params = registry or Registry.load(plugins, KINDS), whole.train
        model = registry.build("models", whole.model.name, whole.model.options, "model")
        loss = registry.build("losses", params.loss.name, params.loss.options, "train.loss")
        optimizer = registry.build("optimizers", params.optimizer.name, params.optimizer.options, "train.optimizer")
        schedule = registry.build("schedules", params.schedule.name, params.schedule.options, "train.schedule")
        order = params.batch_sampler
        batch_sampler = registry.build("batch_samplers", order.name, order.options, "train.batch_sampler")
        chosen = params.eval_callbacks
        callbacks = registry.build_all("eval_callbacks", chosen.use, chosen.options, "train.eval_callbacks")
        deciding = [
            ("models", model.name),
            ("losses", loss.name),
            ("optimizers", optimizer.name),
            ("schedules", schedule.name),
            ("batch_samplers", batch_sampler.name),
        ]
        deciding += [("eval_callbacks", each.name) for each in callbacks if not each.records_only]
        givers = [each.name for each in callbacks if each.has("eval_weights")]
        if len(givers) > 1:
            raise ParamsError(
                f"train.eval_callbacks.use: {' and '.join(givers)} both give the weights that are evaluated "
                "(eval_weights): choose one of them"
            )
        origins = registry.origins(deciding)
        return cls(model, loss, optimizer, schedule, batch_sampler, tuple(callbacks), plugins, *origins)

    def architecture(self, params: ModelParams, tokenizer: Tokenizer) -> Architecture:
        """The architecture that the section `model` describes, for a tokenizer's vocabulary.

        Raises:
            ParamsError: there is no such model.
        """
        sizes = params.sizes
        end = tokenizer.end_of_text if sizes.pop("document_mask") else None
        try:
            shape = ModelShape(vocab_size=tokenizer.vocab_size, document_end=end, **sizes)
        except ValueError as error:
            raise ParamsError(f"model: {explain(error)}") from None
        return Architecture(self.model, shape)

    def effective_model(self, params: ModelParams) -> dict[str, Any]:
        """The `model` section as far as it decides the result: with the options of this model alone."""
        return params.sizes | _chosen("name", [self.model])

    def effective(self, params: TrainParams) -> dict[str, Any]:
        """The `train` section as far as it decides the result: with the options of these components alone, defaults
        included, and without what only records."""
        return params.model_dump(mode="json", exclude={"log_every"}) | {
            "schedule": {"warmup_steps": params.schedule.warmup_steps, **_chosen("name", [self.schedule])},
            "batch_sampler": _chosen("name", [self.batch_sampler]),
            "loss": _chosen("name", [self.loss]),
            "optimizer": _chosen("name", [self.optimizer]),
            "eval_callbacks": _chosen("use", [each for each in self.callbacks if not each.records_only]),
        }

    def nats(self, output: ModelOutput, targets: torch.Tensor, **offered: Any) -> torch.Tensor:
        """The loss's nats [B, T]; it takes what it has parameters for of what is `offered`.

        Raises:
            PluginError: it returned no such thing, which would train silently on another scale.
        """
        loss = self.loss
        with calling(loss):
            nats = loss(output, targets, **supported_arguments(loss, "__call__", **offered))
            if not isinstance(nats, torch.Tensor) or nats.shape != targets.shape:
                got = list(nats.shape) if isinstance(nats, torch.Tensor) else type(nats).__name__
                raise PluginError(
                    f"{label(loss)} returned {got}, not one number a target, [B, T] = "
                    f'{list(targets.shape)}: use reduction="none" and .view(targets.shape)'
                )
            if not nats.is_floating_point() or nats.device != targets.device:
                raise PluginError(
                    f"{label(loss)} returned {nats.dtype} on {nats.device}, not real numbers on {targets.device}"
                )
            if not nats.requires_grad:
                raise PluginError(
                    f"{label(loss)} returned nats without a gradient: compute them from output.logits, "
                    "without detach() or no_grad()"
                )
        return nats

    def build_optimizer(self, model: torch.nn.Module, sharded: bool, total_steps: int) -> torch.optim.Optimizer:
        """The optimizer over every parameter of `model`, for a run of `total_steps`, in train mode if it has one.

        Raises:
            PluginError: it cannot be built, does not hold each parameter exactly once, or does not work on shards.
        """
        name = self.optimizer.name
        if sharded and not self.optimizer.works_on_shards:
            raise PluginError(
                f"the optimizer {name!r} does not work on shards of a tensor: choose another one, or "
                "runtime.strategy: ddp"
            )
        with calling(self.optimizer):
            more = supported_arguments(self.optimizer, "build", total_steps=total_steps)
            optimizer = self.optimizer.build(list(model.named_parameters()), **more)
            _check_optimizer(optimizer, self.optimizer, model)
        _guard(optimizer, self.optimizer)
        set_mode(optimizer, "train")
        return optimizer


def set_mode(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Calls the optimizer's `train()` or `eval()`, if it has them, as those that average weights do: their
    parameters are others while they train."""
    if has_modes(optimizer):
        getattr(optimizer, mode)()


def has_modes(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer tells training from evaluation."""
    return hasattr(optimizer, "train") and hasattr(optimizer, "eval")


def _check_optimizer(built: Any, component: Optimizer, model: torch.nn.Module) -> None:
    """Raises PluginError where `build` returned no optimizer that can train `model`."""
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
        raise PluginError(f"{where} has train() or eval() alone: one that averages weights needs both")
    _check_rates(built, component)


def _check_rates(optimizer: torch.optim.Optimizer, component: Optimizer) -> None:
    for group in optimizer.param_groups:
        rate = group.get("lr")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not math.isfinite(rate):
            raise PluginError(
                f"{label(component)}: each group needs a finite number as lr, which a schedule multiplies, not "
                f"{rate!r}"
            )


def _guard(optimizer: torch.optim.Optimizer, component: Optimizer) -> None:
    """From now on what the optimizer's methods raise names the component, and what they leave behind is checked."""
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
    """Raises PluginError where `what` holds more than plain values and tensors without a gradient, which
    alone can be loaded again without running code."""
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
            f"{what} holds a {type(value).__name__}, which a saved state cannot: keep numbers, texts, lists and "
            "dicts of them, and tensors without a gradient"
        )


def _chosen(key: str, components: Sequence[Any]) -> dict[str, Any]:
    """A choice as params.yaml writes it: names under `key`, and each component's options under its name."""
    names = [component.name for component in components]
    options = {component.name: plain_options(component) for component in components}
    return {key: names if key == "use" else names[0], **options}
