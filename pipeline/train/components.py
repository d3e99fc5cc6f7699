"""The components that a training run uses: the loss, optimizer, schedule and eval callbacks of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.errors import PluginError, raised_by
from pipeline.plugin.components import EvalCallback, Loss, Optimizer, Schedule
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.params.params import TrainParams

KINDS = ["losses", "optimizers", "schedules", "eval_callbacks"]


@dataclass(frozen=True)
class Components:
    """What params.yaml chose, with its options.

    Attributes:
        loss, optimizer, schedule, callbacks: The components.
        plugins: The project's folder of plugins.
        sources: The files that register those components that decide the result: not callbacks that only record.
        packages: Versions of the installed packages among them.
    """

    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    callbacks: tuple[EvalCallback, ...]
    plugins: Path = Path("plugins")
    sources: tuple[Path, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, params: TrainParams, plugins: Path) -> Components:
        """The components that `params` names, with their options checked."""
        registry = Registry.load(plugins, KINDS)
        loss = registry.build("losses", params.loss.name, params.loss.options, "train.loss")
        optimizer = registry.build("optimizers", params.optimizer.name, params.optimizer.options, "train.optimizer")
        schedule = registry.build("schedules", params.schedule.name, params.schedule.options, "train.schedule")
        chosen = params.eval_callbacks
        callbacks = registry.build_all("eval_callbacks", chosen.use, chosen.options, "train.eval_callbacks")
        deciding = [("losses", loss.name), ("optimizers", optimizer.name), ("schedules", schedule.name)]
        deciding += [("eval_callbacks", each.name) for each in callbacks if not each.records_only]
        return cls(loss, optimizer, schedule, tuple(callbacks), plugins, *registry.origins(deciding))

    def effective(self, params: TrainParams) -> dict[str, Any]:
        """The `train` section as far as it decides the result: with the options of these components alone, defaults
        included, and without callbacks that only record."""
        return params.model_dump(mode="json") | {
            "schedule": {"warmup_steps": params.schedule.warmup_steps, **_chosen("name", [self.schedule])},
            "loss": _chosen("name", [self.loss]),
            "optimizer": _chosen("name", [self.optimizer]),
            "eval_callbacks": _chosen("use", [each for each in self.callbacks if not each.records_only]),
        }

    def build_optimizer(self, model: torch.nn.Module, sharded: bool) -> torch.optim.Optimizer:
        """The optimizer over every parameter of `model`.

        Raises:
            PluginError: it cannot be built, does not hold each parameter exactly once, or does not work on shards.
        """
        name = self.optimizer.name
        if sharded and not self.optimizer.works_on_shards:
            raise PluginError(
                f"the optimizer {name!r} does not work on shards of a tensor: choose another one, or "
                "runtime.strategy: ddp"
            )
        try:
            optimizer = self.optimizer.build(list(model.named_parameters()))
        except Exception as error:
            raise raised_by(f"the optimizer {name!r}", error) from error
        held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        wanted = {id(parameter) for parameter in model.parameters()}
        if len(held) != len(set(held)) or set(held) != wanted:
            raise PluginError(
                f"the optimizer {name!r} must hold each of the model's {len(wanted)} parameters exactly once"
            )
        return optimizer


def _chosen(key: str, components: Sequence[Any]) -> dict[str, Any]:
    """A choice as params.yaml writes it: names under `key`, and each component's options under its name."""
    names = [component.name for component in components]
    options = {component.name: plain_options(component) for component in components}
    return {key: names if key == "use" else names[0], **options}
