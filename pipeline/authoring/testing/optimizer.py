"""The contract of an optimizer."""

from __future__ import annotations

import math

import torch

from pipeline.authoring.testing.toy import (
    SmallTestModel,
    instance_of,
    keeps_no_state,
    saved_and_loaded,
    train_steps,
    weights_of,
)
from pipeline.plugin.calls import supported_arguments
from pipeline.plugin.components import Optimizer
from pipeline.train.components import has_modes, set_mode


@keeps_no_state
def check_optimizer(component: type[Optimizer] | Optimizer) -> None:
    """Checks an optimizer: it holds each parameter once, lowers the loss, follows the schedule, and resumes
    bit-identically."""
    builder = instance_of(component)

    def build(seed: int = 0) -> tuple[SmallTestModel, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        net = SmallTestModel()
        optimizer = builder.build(
            list(net.named_parameters()), **supported_arguments(builder, "build", total_steps=64)
        )
        assert isinstance(optimizer, torch.optim.Optimizer), "build must return a torch.optim.Optimizer"
        set_mode(optimizer, "train")
        return net, optimizer

    net, optimizer = build()
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len({id(parameter) for parameter in held}), (
        "a parameter is in more than one group, or twice in a group"
    )
    expected = {id(parameter) for parameter in net.parameters()}
    assert {id(parameter) for parameter in held} == expected, "every parameter must be in a group"
    for group in optimizer.param_groups:
        assert isinstance(group.get("lr"), float), "each group needs an lr: the schedule multiplies it"

    start = train_steps(net, optimizer, 1)
    assert train_steps(net, optimizer, 60) < start, "sixty steps on one small batch must lower its loss"

    weights, states = saved_and_loaded(net.state_dict()), saved_and_loaded(optimizer.state_dict())
    train_steps(net, optimizer, 3)
    again, resumed = build(seed=1)
    again.load_state_dict(weights)
    resumed.load_state_dict(states)
    train_steps(again, resumed, 3)
    for (name, one), other in zip(net.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), f"{name}: resuming from a saved state must be bit-identical"

    if has_modes(optimizer):
        _check_modes(net, optimizer)
        return  # such optimizers also average weights, at any learning rate
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    train_steps(net, optimizer, 1)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name}: a step with learning rate 0 must not change it"


def _check_modes(net: SmallTestModel, optimizer: torch.optim.Optimizer) -> None:
    trained, state = weights_of(net), saved_and_loaded(optimizer.state_dict())
    set_mode(optimizer, "eval")
    assert net.differentiate() < math.log(11), "after eval(), the weights must have a lower loss than at the start"
    set_mode(optimizer, "train")
    for name, parameter in net.named_parameters():
        assert torch.allclose(parameter, trained[name], rtol=1e-4, atol=1e-5), f"{name}: train() must undo eval()"
    assert str(saved_and_loaded(optimizer.state_dict())) == str(state), (
        "train() must restore the state from before eval()"
    )
