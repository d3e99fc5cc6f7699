"""Small models, one value of which a test may change."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import torch
from conftest import REPOSITORY

from pipeline.model.architecture import Architecture, LanguageModel
from pipeline.plugin.components import ModelShape
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["models"])
ARCHITECTURES = REGISTRY.names("models")


def small_config(architecture: str = "gpt2", **changes: Any) -> Architecture:
    """GPT-2's, unless another one is named, with a vocabulary that hardly counts. `changes` are sizes and options;
    options that an architecture does not have are left out."""
    values = {
        "vocab_size": 10,
        "context_length": 64,
        "n_layers": 2,
        "n_heads": 2,
        "emb_dim": 64,
        "dropout": 0.0,
        "pad_vocab_to": 8,
        "tied_head": True,
    } | changes
    sizes = {each.name for each in fields(ModelShape)}
    component = REGISTRY.build("models", architecture, {}, "model")
    options = {name: values[name] for name in type(component).model_fields if name in values}
    component = REGISTRY.build("models", architecture, {architecture: options}, "model")
    return Architecture(component, ModelShape(**{name: values[name] for name in values.keys() & sizes}))


def changed(of: Architecture, /, **changes: Any) -> Architecture:
    """The same with other sizes and options."""
    config = of.config
    return small_config(**{**config.options, **asdict(config.shape), "architecture": config.name, **changes})


def head_weight(model: LanguageModel) -> torch.Tensor:
    """The output head [padded V, D] of a shipped model."""
    head: Any = model.head or model.token_embedding
    weight: torch.Tensor = head.weight
    return weight
