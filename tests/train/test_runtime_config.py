"""What a run is computed with: chosen from params and the machine, and kept when it goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import REPOSITORY

from pipeline.core.errors import ParamsError
from pipeline.distributed.ranks import Ranks
from pipeline.model import device
from pipeline.params.reader import load_params
from pipeline.train import runtime_config
from pipeline.train.runtime_config import resolve_runtime_config

LONG, SHORT = 1e18, 1e6


def resolved(
    *overrides: str, earlier: dict[str, Any] | None = None, flops: float = SHORT
) -> runtime_config.RuntimeConfig:
    params = load_params(REPOSITORY / "params.yaml", ("runtime.device=cpu", *overrides))
    return resolve_runtime_config(params, Ranks(), earlier or {}, flops)


@pytest.mark.parametrize(("known", "precision"), [({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")])
def test_auto_computes_in_bf16_where_the_processor_has_instructions_for_it(
    known: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert resolved("train.precision=auto").precision == precision
    assert resolved("train.precision=auto", earlier={"precision": "fp32"}).precision == "fp32"
    assert resolved("train.precision=bf16").precision == "bf16"


def test_auto_compiles_long_runs_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_config, "_compiler_found", lambda: True)
    assert resolved("runtime.compile=auto", flops=LONG).compile
    assert not resolved("runtime.compile=auto", flops=SHORT).compile
    assert resolved("runtime.compile=auto", flops=SHORT, earlier={"compile": True}).compile
    assert not resolved("runtime.compile=false", flops=LONG, earlier={"compile": True}).compile
    monkeypatch.setattr(runtime_config, "_compiler_found", lambda: False)
    assert not resolved("runtime.compile=auto", flops=LONG).compile
    with pytest.raises(ParamsError, match=r"there is no C\+\+ compiler .* set it to auto"):
        resolved("runtime.compile=true")


def test_an_apple_gpu_runs_eagerly_and_in_bf16_where_the_probe_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(runtime_config, "_compiler_found", lambda: True)
    for works, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device, "autocasts_bf16", lambda tried, works=works: works)
        made = resolved("runtime.device=mps", "train.precision=auto", "runtime.compile=auto", flops=LONG)
        assert (made.device, made.precision, made.compile) == ("mps", precision, False)
        assert resolved("runtime.device=mps", "runtime.compile=true", flops=LONG).compile


def test_a_c_library_that_is_not_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    device.keep_memory()
    monkeypatch.setattr(device.ctypes, "CDLL", missing)
    device.keep_memory()
