"""Helpers of the checks: instances, a toy model to train, and saving and loading."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from pipeline.authoring.options import check_options
from pipeline.plugin.components import Component, ModelOutput

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


TOY_CONTEXT = 5


class ToyNet(nn.Module):
    """A minimal model that has every kind of parameter, named as in the GPT."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, tokens: torch.Tensor) -> ModelOutput:
        assert tokens.ndim == 1 or tokens.shape[1] <= TOY_CONTEXT, (
            "the last id of a batch is only a target: call model(ids[:, :-1])"
        )
        x = self.token_embedding(tokens)
        hidden = self.norm(x + self.down(torch.relu(self.up(x))))
        return ModelOutput(hidden, self.head.weight, self.head.out_features)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """The negative log-likelihood of each id [B, T + 1] after the first, in nats."""
        with torch.no_grad():
            output: ModelOutput = self(ids[:, :-1])
        return output.cross_entropy(ids[:, 1:]).double()

    def differentiate(self) -> float:
        """Computes the loss of a small batch and its gradients; returns the loss."""
        tokens = torch.arange(11)
        loss = nn.functional.cross_entropy(self(tokens).logits, (tokens + 1) % 11)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()


def train_steps(net: ToyNet, optimizer: torch.optim.Optimizer, count: int) -> float:
    loss = 0.0
    for _ in range(count):
        optimizer.zero_grad()
        loss = net.differentiate()
        optimizer.step()
    return loss


def weights_of(net: ToyNet) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
