"""Helpers of the checks: instances, a small model to train, and saving and loading."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from pipeline.authoring.options import check_options
from pipeline.model.blocks import Attention
from pipeline.plugin.components import Component, ModelOutput, ModelShape

C = TypeVar("C", bound=Component)
P = ParamSpec("P")
T = TypeVar("T")


def instance_of(component: type[C] | C) -> C:
    built = component() if isinstance(component, type) else component
    assert built == type(built)(**built.model_dump()), (
        "an instance with the same options must be equal: the options must determine the component"
    )
    check_options(built)
    return built


def keeps_no_state(check: Callable[P, T]) -> Callable[P, T]:
    """Decorator of a check: asserts that the calls do not change attributes of the component's class."""

    @wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        cls = args[0] if isinstance(args[0], type) else type(args[0])
        before = _class_attributes(cls)
        result = check(*args, **kwargs)
        after = _class_attributes(cls)
        changed = sorted(name for name in before | after if before.get(name) != after.get(name))
        assert not changed, (
            f"calls changed {', '.join(changed)} of the class: a component must be stateless, so that runs are "
            "reproducible and can be resumed; keep state in the memory that the method receives"
        )
        return result

    return checked


def _class_attributes(cls: type) -> dict[str, str]:
    """The attributes defined by the plugin's classes, as text."""
    plugin_classes = [
        each for each in cls.__mro__ if each.__module__.partition(".")[0] not in ("pipeline", "pydantic", "abc")
    ]
    return {
        name: repr(value)
        for each in reversed(plugin_classes)
        for name, value in vars(each).items()
        if not name.startswith(("__", "_abc_", "model_"))
    }


def saved_and_loaded(values: dict[str, Any]) -> dict[str, Any]:
    """Saves and loads the values with `weights_only=True`, which allows only tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


TEST_CONTEXT = 5


class SmallTestModel(nn.Module):
    """A minimal GPT, with the parts that all shipped models have, under the same names."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"vocab_size": 11, "context_length": TEST_CONTEXT, "n_layers": 2, "n_heads": 2, "emb_dim": 8}
        shape = ModelShape(**sizes, dropout=0.0, pad_vocab_to=1)
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.emb_dim)
        self.blocks = nn.ModuleList(_Block(shape, layer) for layer in range(shape.n_layers))
        self.norm = nn.LayerNorm(shape.emb_dim)
        self.head = nn.Linear(shape.emb_dim, shape.vocab_size, bias=False)

    def forward(self, ids: torch.Tensor) -> ModelOutput:
        assert ids.shape[1] <= TEST_CONTEXT, "the last id of a batch is only a target: call model(ids[:, :-1])"
        x = self.token_embedding(ids)
        for block in self.blocks:
            x = block(x)
        return ModelOutput(self.norm(x), self.head.weight, self.head.out_features)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """The negative log-likelihood of each id [B, T + 1] after the first, in nats."""
        with torch.no_grad():
            output: ModelOutput = self(ids[:, :-1])
        return output.cross_entropy(ids[:, 1:]).double()

    def differentiate(self) -> float:
        """Computes the loss of a small batch and its gradients; returns the loss."""
        ids = torch.arange(2 * TEST_CONTEXT).view(2, TEST_CONTEXT)
        output: ModelOutput = self(ids)
        loss = output.cross_entropy(ids + 1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()


class _Block(nn.Module):
    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        width = shape.emb_dim
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(shape, layer)
        layers = {"up": nn.Linear(width, 2 * width), "gelu": nn.GELU(), "down": nn.Linear(2 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), None, None, None, None)
        added: torch.Tensor = self.mlp(self.mlp_norm(x))
        return x + added


def train_steps(net: SmallTestModel, optimizer: torch.optim.Optimizer, count: int) -> float:
    loss = 0.0
    for _ in range(count):
        optimizer.zero_grad()
        loss = net.differentiate()
        optimizer.step()
    return loss


def weights_of(net: SmallTestModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
