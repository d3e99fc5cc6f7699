"""What a device can: bfloat16 on an Apple GPU, and no float64 there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.model import device, scoring
from pipeline.model.scoring import score_tokens
from pipeline.plugin.components import ModelOutput

APPLE = torch.device("mps")


@pytest.mark.parametrize("works", [True, False])
def test_an_apple_gpu_computes_in_bf16_where_the_probe_passes(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "autocasts_bf16", lambda tried: works and tried == APPLE)
    assert device.computes_bf16(APPLE) == works


def test_the_probe_passes_where_autocast_computes_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    assert device.autocasts_bf16(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fault", [RuntimeError("no kernel"), TypeError("no bfloat16"), "float32", "wrong"])
def test_the_probe_fails_on_an_error_another_dtype_or_a_wrong_result(
    fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = torch.Tensor.__matmul__

    def faulty(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        if isinstance(fault, Exception):
            raise fault
        result = product(first, second)
        return result.float() if fault == "float32" else result + 1

    monkeypatch.setattr(torch.Tensor, "__matmul__", faulty)
    assert not device.autocasts_bf16(torch.device("cpu"))


class NoFloat64OnTheCpu(TorchDispatchMode):
    """Refuses on a CPU what Apple's GPUs refuse."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and each.device.type == "cpu":
                assert each.dtype != torch.float64, func
        return result


def test_float64_is_computed_elsewhere_where_the_device_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for the Apple GPU, and "meta" for the CPU: operations do not mix them."""
    assert device.float64_device(APPLE) == torch.device("cpu")
    assert device.float64_device(torch.device("cuda:1")) == torch.device("cuda:1")
    monkeypatch.setattr(scoring, "float64_device", lambda own: torch.device("meta"))
    seen: list[torch.Tensor] = []
    with torch.no_grad(), NoFloat64OnTheCpu():
        hidden, head, targets = torch.randn(2, 5, 8), torch.randn(11, 8), torch.randint(11, (2, 5))
        nats, correct = score_tokens(ModelOutput(hidden, head, 11), targets, lambda *given: seen.extend(given))
    assert nats.dtype == torch.float64
    assert {each.device.type for each in (nats, correct, *seen)} == {"meta"}
