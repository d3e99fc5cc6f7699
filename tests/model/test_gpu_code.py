"""The code that models run on a GPU, run on a CPU: whole graphs, no waiting host, and the same numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from gpu_code import NoHostReads
from small_config import ARCHITECTURES, small_config
from torch.nn.attention import flex_attention

from pipeline.model import functions
from pipeline.model.architecture import Architecture, LanguageModel
from pipeline.model.attention import DocumentMask, KVCache, attend
from pipeline.model.blocks import RMSNorm, rms_norm
from pipeline.plugin.registry import Registry

LENGTH, END, VOCAB = 136, 10, 50
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_dropout = pytest.mark.parametrize("dropout", [0.0, 0.1])
each_end = pytest.mark.parametrize("document_end", [None, END])


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's code; FlexAttention refuses gradients on a CPU, although its reference computes them."""
    monkeypatch.setattr(functions, "code_path", lambda device: "cuda")
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    torch._dynamo.reset()


def make(architecture: str, dropout: float, document_end: int | None) -> LanguageModel:
    """A model in training mode, with grouped-query attention if it has it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "context_length": LENGTH, "n_layers": 1, "emb_dim": 32, "n_kv_heads": 1}
    config = small_config(architecture, **sizes, dropout=dropout, document_end=document_end)
    model = config.make().train()
    for parameter in model.parameters():  # residual projections of zero would hide the attention
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def ids(seed: int) -> torch.Tensor:
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(seed))


def gradients(model: LanguageModel, forward: Any, seed: int) -> list[torch.Tensor]:
    """Hidden states, and the gradients of a weighted sum of them."""
    model.zero_grad()
    torch.manual_seed(seed)
    hidden = forward(ids(seed)).hidden
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(seed))).sum().backward()
    return [hidden.detach(), *(each.grad.clone() for each in model.parameters() if each.grad is not None)]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-4)


@each_architecture
@each_dropout
@each_end
def test_a_model_is_one_graph_which_the_next_batch_uses_again(
    architecture: str, dropout: float, document_end: int | None
) -> None:
    model = make(architecture, dropout, document_end)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    assert_same(gradients(model, compiled, 1), gradients(model, model, 1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(ids(2))


@each_architecture
def test_a_block_is_one_graph_for_each_batchs_documents(architecture: str) -> None:
    model = make(architecture, 0.1, END)
    expected = [gradients(model, model, seed) for seed in (1, 2)]
    for block in model.blocks:
        block.compile(fullgraph=True, dynamic=False, backend="eager")
    assert_same(gradients(model, model, 1), expected[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same(gradients(model, model, 2), expected[1])


@pytest.mark.parametrize("name", ["moe", "gla"])
@each_dropout
def test_models_of_other_authors_are_one_graph(name: str, dropout: float) -> None:
    registry = Registry.of_file(REPOSITORY / "tests" / "plugins" / "models" / f"{name}.py", name)
    shape = small_config(vocab_size=VOCAB, context_length=LENGTH, n_layers=1, emb_dim=32, dropout=dropout).shape
    model = Architecture(registry.build("models", name, {}, "model"), shape).make().train()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    assert_same(gradients(model, compiled, 1), gradients(model, model, 1))


@each_architecture
@each_dropout
@each_end
def test_the_host_does_not_wait_inside_a_pass(architecture: str, dropout: float, document_end: int | None) -> None:
    model = make(architecture, dropout, document_end)
    with NoHostReads():
        gradients(model, model, 1)


@each_architecture
@each_end
def test_a_gpus_numbers_are_those_of_a_cpu(
    architecture: str, document_end: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(architecture, 0.0, document_end)
    found = gradients(model, model, 1)
    cache = KVCache(LENGTH)
    with torch.no_grad():
        model.eval()
        parts = [model(ids(1)[:, first:last], cache).hidden for first, last in pairwise((0, 70, 71, 135, 136))]
    torch.testing.assert_close(torch.cat(parts, dim=1), found[0], rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(functions, "code_path", lambda device: "cpu")
    model.train()
    assert_same(found, gradients(model, model, 1))


@pytest.mark.parametrize("length", [1, 127, 128, 129, 512, 700])
def test_the_blocks_of_a_document_mask_are_those_of_its_tokens(length: int) -> None:
    tokens = torch.randint(120, (3, length), generator=torch.Generator().manual_seed(length))
    tokens[0] = 0  # one document
    tokens[1, ::9] = END
    mask = DocumentMask.of(tokens, END)
    dense = mask.dense()
    expected = flex_attention.create_block_mask(
        lambda b, h, query, key: dense[b, 0, query, key], 3, None, length, length, device="cpu"
    )
    flex = mask.flex()
    for name in ("kv", "full_kv", "q", "full_q"):
        counts = getattr(expected, f"{name}_num_blocks")
        assert torch.equal(getattr(flex, f"{name}_num_blocks"), counts), name
        assert torch.equal(getattr(flex, f"{name}_indices"), getattr(expected, f"{name}_indices")), name


def test_shared_keys_and_values_are_those_of_each_group_of_queries() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 9, 16, generator=generator).bfloat16() for heads in (6, 2, 2))
    repeated = attend(q, *(each.repeat_interleave(3, dim=1) for each in (k, v)), None)
    torch.testing.assert_close(attend(q, k, v, None), repeated, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_under_autocast_a_norm_keeps_its_inputs_dtype_and_computes_in_float32(dtype: torch.dtype) -> None:
    """A custom backward pass in float16 would overflow: its factor is 1/rms³."""
    x = (torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 0.01).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = rms_norm(x)
        assert RMSNorm(64)(x).dtype == y.dtype == dtype
    y.sum().backward()
    exact = x.detach().double().requires_grad_()
    (exact / (exact.square().mean(dim=-1, keepdim=True) + functions.RMS_EPS).sqrt()).sum().backward()
    assert x.grad is not None
    assert exact.grad is not None
    assert (x.grad.double() - exact.grad).norm() <= 4 * torch.finfo(dtype).eps * exact.grad.norm()
