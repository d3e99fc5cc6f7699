"""What a run is computed with: chosen from params and the machine, and kept when it goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from small_config import small_config

from pipeline.core.errors import ParamsError
from pipeline.distributed.ranks import Ranks
from pipeline.model import device
from pipeline.params.reader import load_params
from pipeline.train import memory_check, runtime_config
from pipeline.train.memory_check import estimated_bytes
from pipeline.train.runtime_config import resolve_runtime_config

LONG, SHORT = 1e18, 1e6
ONE, TWO = Ranks(), Ranks(world_size=2)
SHARDED = "runtime.strategy=fsdp"
SMALL = small_config(n_layers=4, emb_dim=32)


def resolved(
    *overrides: str, earlier: dict[str, Any] | None = None, flops: float = SHORT, ranks: Ranks = ONE
) -> runtime_config.RuntimeConfig:
    params = load_params(REPOSITORY / "params.yaml", ("runtime.device=cpu", *overrides))
    return resolve_runtime_config(params, ranks, earlier or {}, flops, SMALL)


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
    assert resolved("runtime.compile=auto", flops=LONG).compile == "blocks"
    assert not resolved("runtime.compile=auto", flops=SHORT).compiled
    assert resolved("runtime.compile=auto", flops=SHORT, earlier={"compile": "model"}).compile == "model"
    assert not resolved("runtime.compile=false", flops=LONG, earlier={"compile": "blocks"}).compiled
    assert resolved("runtime.compile=model").compile == "model"
    assert resolved("runtime.compile=model", SHARDED, ranks=TWO).compile == "blocks"
    monkeypatch.setattr(runtime_config, "_compiler_found", lambda: False)
    assert not resolved("runtime.compile=auto", flops=LONG).compiled
    for chosen in ("true", "blocks", "model"):
        with pytest.raises(ParamsError, match=rf"{chosen}, but there is no C\+\+ compiler .* set it to auto"):
            resolved(f"runtime.compile={chosen}")


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, memory: float = 1e12, bf16: bool = True) -> None:
    """Makes `resolved` find a CUDA GPU."""
    monkeypatch.setattr(runtime_config, "rank_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(runtime_config, "_processor", lambda _: "a GPU")
    monkeypatch.setattr(runtime_config, "_compiler_found", lambda: True)
    monkeypatch.setattr(runtime_config, "computes_bf16", lambda _: bf16)
    monkeypatch.setattr(memory_check, "memory_of", lambda _: int(memory))


def test_a_gpu_compiles_the_whole_model_unless_it_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    for chosen in ("auto", "true"):
        assert resolved(f"runtime.compile={chosen}", flops=LONG).compile == "model"
        assert resolved(f"runtime.compile={chosen}", SHARDED, flops=LONG, ranks=TWO).compile == "blocks"
    assert not resolved("runtime.compile=auto", flops=1e13).compiled
    assert resolved("runtime.compile=blocks").compile == "blocks"


def test_a_gpu_without_bf16_computes_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    for bf16, precision in ((True, "bf16"), (False, "fp16")):
        on_a_gpu(monkeypatch, bf16=bf16)
        assert resolved("train.precision=auto").precision == precision


def test_activations_are_recomputed_where_they_would_not_fit_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    micro_batch = 3
    needed = estimated_bytes(SMALL, micro_batch, "bf16")
    chosen = (f"train.micro_batch_size={micro_batch}", "train.precision=bf16")
    for memory, recompute in ((1.2 * needed, False), (needed, True)):
        on_a_gpu(monkeypatch, memory)
        assert resolved(*chosen).recompute == recompute
        assert resolved(*chosen, earlier={"recompute": not recompute}).recompute != recompute
        assert resolved(*chosen, SHARDED, ranks=TWO).recompute
        assert not resolved(*chosen, SHARDED, "runtime.recompute=false", ranks=TWO).recompute
    monkeypatch.undo()
    assert not resolved(*chosen).recompute  # on a CPU
    assert resolved("runtime.recompute=true").recompute


def test_an_apple_gpu_runs_eagerly_and_in_bf16_where_the_probe_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(runtime_config, "_compiler_found", lambda: True)
    for works, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device, "autocasts_bf16", lambda tried, works=works: works)
        made = resolved("runtime.device=mps", "train.precision=auto", "runtime.compile=auto", flops=LONG)
        assert (made.device, made.precision, made.compile) == ("mps", precision, "no")
        assert resolved("runtime.device=mps", "runtime.compile=true", flops=LONG).compile == "blocks"


def test_a_c_library_that_is_not_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    device.keep_memory()
    monkeypatch.setattr(device.ctypes, "CDLL", missing)
    device.keep_memory()
