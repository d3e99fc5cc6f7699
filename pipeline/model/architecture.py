"""A model architecture with its sizes: with the weights, everything that is needed to rebuild a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
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
    """The model config in a checkpoint's config.json.

    Attributes:
        name: The architecture's name.
        options: The architecture's options.
        shape: The sizes that all architectures share.
    """

    name: str
    options: dict[str, Any]
    shape: ModelShape

    @classmethod
    def from_file(cls, path: Path, fix: str) -> ModelConfig:
        """Reads a config.json; `fix` ends the error messages.

        Raises:
            CheckpointError: the file is missing or invalid.
        """
        values = read_values(path, dict[str, Any], fix, CheckpointError)
        if "shape" not in values and "context_length" in values:
            raise CheckpointError(f"{path} lacks the key shape, because an earlier version wrote it: {fix}")
        return read_values(path, cls, fix, CheckpointError)

    def architecture(self, registry: Registry, where: Path) -> Architecture:
        """The architecture, built by a plugin of `registry`; `where` names the file in messages.

        Raises:
            CheckpointError: no plugin provides it, an option is unknown, or the sizes do not fit together.
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
        """Name, sizes and options in one dict."""
        return {**self.options, **asdict(self.shape), "name": self.name}


class LanguageModel(nn.Module):
    """The type of what `Architecture.make` returns, for type checkers: the plugin's module with its
    architecture."""

    architecture: Architecture
    blocks: nn.ModuleList


@plain_dataclass(frozen=True)
class Architecture:
    """A model architecture and its sizes, without weights.

    Attributes:
        component: The plugin's `Model`, with its options.
        shape: The sizes.
    """

    component: Model
    shape: ModelShape

    def make(self) -> LanguageModel:
        """Builds the model; torch's global generator draws its weights.

        Raises:
            ParamsError: the sizes do not fit together.
            PluginError: the plugin raises another error, or returns no module.
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

    def on_meta(self) -> LanguageModel:
        """Builds the model on the device "meta": without memory and without values.

        Raises:
            ParamsError: the sizes do not fit together, or a tensor is too large for any memory.
        """
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"), _SkipInit():
                return self.make()
        except (RuntimeError, PluginError) as error:
            if "calculation overflowed" in str(error.__cause__ or error):
                raise ParamsError(
                    "model: a tensor is too large for any memory: lower model.emb_dim or model.context_length"
                ) from None
            raise

    @property
    def config(self) -> ModelConfig:
        """The content of config.json."""
        return ModelConfig(self.component.name, plain_options(self.component), self.shape)

    @cached_property
    def meta_model(self) -> LanguageModel:
        """The model on the device "meta", for the names, shapes and dtypes of its tensors; raises as `on_meta`."""
        return self.on_meta()

    @cached_property
    def tensor_specs(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of each tensor in the state dict."""
        return {name: (tensor.shape, tensor.dtype) for name, tensor in self.meta_model.state_dict().items()}

    @cached_property
    def parameters(self) -> dict[str, int]:
        """The number of elements of each parameter; a tied head counts once."""
        return {name: parameter.numel() for name, parameter in self.meta_model.named_parameters()}

    @property
    def parameter_count(self) -> int:
        """The number of parameters, including padding rows."""
        return sum(self.parameters.values())

    @cached_property
    def flops_per_token(self) -> int:
        """Floating-point operations per trained token, forward and backward: 6N + 12·L·T·D, where N counts the head
        but not the embeddings (Chowdhery et al., 2022, appendix B). An estimate for architectures that differ from
        GPT-2, such as a mixture of experts."""
        embeddings = [module for module in self.meta_model.modules() if isinstance(module, nn.Embedding)]
        n = self.parameter_count - sum(each.weight.numel() for each in embeddings)
        shape = self.shape
        if "head.weight" not in self.parameters:
            n += shape.padded_vocab_size * shape.emb_dim
        return 6 * n + 12 * shape.n_layers * shape.context_length * shape.emb_dim


def units(model: LanguageModel) -> list[torch.nn.Module]:
    """The modules to compile and shard separately: the model's blocks, or the model if it has none."""
    return list(getattr(model, "blocks", None) or [model])


class _SkipInit(TorchFunctionMode):
    """Skips initialisers: meta tensors have no content, and torch takes over a second to load its meta kernels."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ in ("normal_", "uniform_", "trunc_normal_", "zero_", "fill_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def checked_forward(model: LanguageModel, ids: torch.Tensor, *cache: object) -> ModelOutput:
    """Calls the model on ids [B, T] and checks its output.

    Raises:
        PluginError: the model raises an exception, or returns no valid ModelOutput.
    """
    return checked_output(call_model(model, ids, *cache), model, ids)


def call_model(model: LanguageModel, ids: torch.Tensor, *cache: object) -> Any:
    """Calls the model on ids [B, T]; the output is not checked.

    Raises:
        PluginError: the model raises an exception. With several ranks it stays as it is: it may be a collective's.
    """
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    with calling(model.architecture.component) if alone else nullcontext():
        return model(ids, *cache)


def checked_output(output: Any, model: LanguageModel, ids: torch.Tensor) -> ModelOutput:
    """`output`, if it is a valid ModelOutput for `ids`; otherwise raises PluginError."""
    shape, where = model.architecture.shape, model.architecture.component
    if not isinstance(output, ModelOutput):
        raise PluginError(f"{label(where)}: forward must return a ModelOutput, not {type(output).__name__}")
    for name in ("hidden", "head_weight"):
        tensor = getattr(output, name)
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise PluginError(f"{label(where)}: ModelOutput.{name} must be a floating-point tensor, not {kind}")
    given = (output.hidden.shape, output.head_weight.shape[1:], output.vocab_size)
    wanted = ((*ids.shape, output.hidden.shape[-1]), output.hidden.shape[-1:], shape.vocab_size)
    if given != wanted or len(output.head_weight) < shape.vocab_size:
        raise PluginError(
            f"{label(where)}: for {list(ids.shape)} ids of a vocabulary of {shape.vocab_size:,}, forward returned "
            f"hidden {list(output.hidden.shape)}, head_weight {list(output.head_weight.shape)} and vocab_size "
            f"{output.vocab_size}: they must be [B, T, D], [V or more, D] and V"
        )
    _check_auxiliary(output.auxiliary, where)
    return output


def _check_auxiliary(auxiliary: Any, where: Model) -> None:
    """Raises PluginError unless it is a scalar tensor, which may have a gradient, or a finite number."""
    if isinstance(auxiliary, torch.Tensor):
        scalar, given = not auxiliary.shape and auxiliary.is_floating_point(), f"{list(auxiliary.shape)}"
        given += f" {auxiliary.dtype}"
    else:
        scalar, given = isinstance(auxiliary, int | float) and math.isfinite(auxiliary), repr(auxiliary)
    if not scalar:
        raise PluginError(f"{label(where)}: ModelOutput.auxiliary must be a scalar, not {given}")
