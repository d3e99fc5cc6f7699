"""An architecture with its sizes: with the weights, all that is needed to build the model again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from pydantic.dataclasses import dataclass
from torch import nn
from torch.overrides import TorchFunctionMode

from pipeline.core.errors import CheckpointError, ParamsError, PluginError
from pipeline.core.values import STRICT, read_values
from pipeline.plugin.calls import calling, label
from pipeline.plugin.components import Model, ModelOutput, ModelShape
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """What config.json holds of a checkpoint's model.

    Attributes:
        name: The architecture's name.
        options: Its own options.
        shape: The sizes that every architecture has.
    """

    name: str
    options: dict[str, Any]
    shape: ModelShape

    @classmethod
    def from_file(cls, path: Path, fix: str) -> ModelConfig:
        """The config whose values are in a config.json.

        Raises:
            CheckpointError: the file is missing, or holds something else; `fix` ends the message.
        """
        values = read_values(path, dict[str, Any], fix, CheckpointError)
        if "shape" not in values and "context_length" in values:
            raise CheckpointError(f"{path} has no shape: an earlier version wrote this checkpoint: {fix}")
        return read_values(path, cls, fix, CheckpointError)

    def architecture(self, registry: Registry, where: Path) -> Architecture:
        """The architecture, from the plugins of `registry`; `where` names the file in messages.

        Raises:
            CheckpointError: no plugin brings it, it has no such option, or there is no such model.
        """
        try:
            found = Architecture(
                registry.build("models", self.name, {self.name: self.options}, "model"), self.shape
            )
            _ = found.meta_model
        except ParamsError as error:
            raise CheckpointError(f"{where}: {error}") from None
        return found

    def flatten(self) -> dict[str, Any]:
        """Name, sizes and options in one mapping."""
        return {**self.options, **asdict(self.shape), "name": self.name}


class LanguageModel(nn.Module):
    """What `Architecture.make` returns, for type checkers: a plugin's own module, which knows its architecture."""

    architecture: Architecture
    blocks: nn.ModuleList


@plain_dataclass(frozen=True)
class Architecture:
    """A model before it is made.

    Attributes:
        component: The plugin's architecture, with its options.
        shape: The sizes.
    """

    component: Model
    shape: ModelShape

    def make(self) -> LanguageModel:
        """Makes the model, with weights drawn from torch's generator.

        Raises:
            ParamsError: there is no such model, because two sizes do not fit.
            PluginError: the plugin raises something else, or returns no module.
        """
        with calling(self.component):
            try:
                model = self.component.build(self.shape)
            except ValueError as error:
                raise ParamsError(f"model: {self.component.name}: {' '.join(str(error).split())}") from error
            if not isinstance(model, nn.Module):
                raise PluginError(
                    f"{label(self.component)}: build must return a torch.nn.Module, not {type(model).__name__}"
                )
        made = cast(LanguageModel, model)
        made.architecture = self
        return made

    @property
    def config(self) -> ModelConfig:
        """What config.json holds of it."""
        return ModelConfig(self.component.name, plain_options(self.component), self.shape)

    @cached_property
    def meta_model(self) -> LanguageModel:
        """The model without content, on the device "meta": its parameters' names, shapes and dtypes.

        Raises:
            ParamsError: there is no such model, or it is larger than any memory.
        """
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"), _SkipInit():
                return self.make()
        except (RuntimeError, PluginError) as error:
            if "calculation overflowed" in str(error.__cause__ or error):
                raise ParamsError(
                    "model: a tensor of such sizes fits in no memory: lower model.emb_dim or model.context_length"
                ) from None
            raise

    @cached_property
    def tensor_specs(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of each tensor in the state dict."""
        return {name: (tensor.shape, tensor.dtype) for name, tensor in self.meta_model.state_dict().items()}

    @cached_property
    def parameters(self) -> dict[str, int]:
        """The size of each parameter; a tied head is counted once."""
        return {name: parameter.numel() for name, parameter in self.meta_model.named_parameters()}

    @property
    def parameter_count(self) -> int:
        """Parameters, with padding rows; known before the model is made."""
        return sum(self.parameters.values())

    @cached_property
    def flops_per_token(self) -> int:
        """Floating-point operations a trained token costs, forward and backward: 6N + 12·L·T·D, N without the
        embeddings but with the head (Chowdhery et al., 2022, appendix B). Of what does not look like GPT-2, such as
        a mixture of experts, an estimate."""
        embeddings = [module for module in self.meta_model.modules() if isinstance(module, nn.Embedding)]
        n = self.parameter_count - sum(each.weight.numel() for each in embeddings)
        shape = self.shape
        if "head.weight" not in self.parameters:
            n += shape.padded_vocab_size * shape.emb_dim
        return 6 * n + 12 * shape.n_layers * shape.context_length * shape.emb_dim


class _SkipInit(TorchFunctionMode):
    """Skips what draws or fills a tensor: one without content has nothing to draw, and torch takes over a second to
    load what would pretend to."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ in ("normal_", "uniform_", "trunc_normal_", "zero_", "fill_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def checked_forward(model: LanguageModel, ids: torch.Tensor, *cache: object) -> ModelOutput:
    """What a model computes for ids [B, T].

    Raises:
        PluginError: it is no ModelOutput, or one of other shapes.
    """
    return checked_output(model(ids, *cache), model, ids)


def checked_output(output: Any, model: LanguageModel, ids: torch.Tensor) -> ModelOutput:
    """`output`, if it is what a model of this shape gives for `ids`; else raises PluginError."""
    shape, where = model.architecture.shape, model.architecture.component
    if not isinstance(output, ModelOutput):
        raise PluginError(f"{label(where)}: forward must return a ModelOutput, not {type(output).__name__}")
    given = (output.hidden.shape, output.head_weight.shape[1:], output.vocab_size)
    wanted = ((*ids.shape, output.hidden.shape[-1]), output.hidden.shape[-1:], shape.vocab_size)
    if given != wanted or len(output.head_weight) < shape.vocab_size:
        raise PluginError(
            f"{label(where)}: for {list(ids.shape)} ids of a vocabulary of {shape.vocab_size:,}, forward returned "
            f"hidden {list(output.hidden.shape)}, head_weight {list(output.head_weight.shape)} and vocab_size "
            f"{output.vocab_size:,}: they must be [B, T, D], [V or more, D] and V"
        )
    return output
