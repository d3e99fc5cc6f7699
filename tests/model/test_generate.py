"""Generation in bfloat16, and of several prompts at once: the same texts, up to roundings, as alone in float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from conftest import Project
from small_config import head_weight, small_config

from pipeline.model.architecture import LanguageModel
from pipeline.model.attention import KVCache
from pipeline.model.functions import Linear, linear
from pipeline.model.generate import fastest_dtype, generate, generate_batch

U = torch.finfo(torch.bfloat16).eps / 2
CONTEXT, VOCAB, LAYERS = 12, 50, 2
each_architecture = pytest.mark.parametrize("architecture", ["gpt2", "modern", "llama"])


def sharp(architecture: str, **changes: object) -> LanguageModel:
    """A tiny model in float64 whose weights are large, so that its choices are far from uniform."""
    sizes = {"vocab_size": VOCAB, "context_length": CONTEXT, "n_layers": LAYERS, "emb_dim": 16, "pad_vocab_to": 64}
    torch.manual_seed(0)
    model = small_config(architecture=architecture, **sizes | changes).make().double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def prompts() -> list[list[int]]:
    """Of different lengths, two of them alike, one longer than the context."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in (3, 1, 7, 3, 2 * CONTEXT)]


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(len(prompts()))]


# ── several prompts ───────────────────────────────────────────────────────────────────────────────


def alone(
    model: LanguageModel, new: int, drawn: list[torch.Generator] | None, end: int | None
) -> Iterator[list[int]]:
    for row, prompt in enumerate(prompts()):
        generator = drawn[row] if drawn else None
        ids = generate(model, torch.tensor([prompt]), new, [favour_the_new], generator, end)
        yield [int(token) for token in ids]


def favour_the_new(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A sampler that depends on every token so far."""
    return logits - 0.5 * F.one_hot(tokens, VOCAB).sum(dim=1)


@each_architecture
@pytest.mark.parametrize("end", [None, 7])
@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize("new", [1, 4, 3 * CONTEXT])
@pytest.mark.parametrize("document_end", [None, 3])
def test_several_prompts_are_continued_as_each_is_alone(
    architecture: str, end: int | None, random: bool, new: int, document_end: int | None
) -> None:
    model = sharp(architecture, document_end=document_end)
    drawn = generators() if random else None
    found = generate_batch(model, prompts(), new, [favour_the_new], drawn, end)
    assert found == list(alone(model, new, generators() if random else None, end))


def test_a_batch_continues_each_row_as_alone() -> None:
    model = sharp("gpt2")
    ids = torch.randint(VOCAB, (4, 5), generator=torch.Generator().manual_seed(2))
    together = torch.stack(list(generate(model, ids, 2 * CONTEXT)), dim=1)
    for row in range(4):
        own = torch.stack(list(generate(model, ids[row : row + 1], 2 * CONTEXT)), dim=1)
        assert torch.equal(together[row : row + 1], own)


def test_nothing_is_read_while_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = sharp("gpt2"), []
    forward = model.forward

    def counted(tokens: torch.Tensor, cache: KVCache | None = None) -> object:
        calls.append(tokens.shape[1])
        return forward(tokens, cache)

    monkeypatch.setattr(model, "forward", counted)
    generate_batch(model, [[1], [1, 2, 3, 4, 5, 6, 7, 8]], 2)
    assert calls == [1, 1, 6, 1]


# ── bfloat16 ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (1, 1, 24), (5, 1, 24), (2, 7, 24), (40, 24)], ids=str)
def test_a_linear_in_bfloat16_is_off_by_its_roundings_only(shape: tuple[int, ...], bias: bool) -> None:
    """The product is rounded once, with the bias once more; sums are in float32."""
    generator = torch.Generator().manual_seed(len(shape))
    x, weight, b = (torch.randn(size, generator=generator).bfloat16() for size in (shape, (32, 24), (32,)))
    result = linear(x, weight, b if bias else None)
    assert result.dtype == torch.bfloat16
    assert result.shape == (*shape[:-1], 32)
    product = x.double() @ weight.double().T
    exact = product + b.double() * bias
    sums = 24 * torch.finfo(torch.float32).eps * (x.double().abs() @ weight.double().abs().T)
    assert ((result.double() - exact).abs() <= 1.01 * U * (product.abs() + exact.abs()) + 2 * sums).all()


def test_a_linear_in_bfloat16_has_gradients() -> None:
    for rows in (1, 6):
        layer = Linear(8, 4).bfloat16()
        x = torch.randn(rows, 8, dtype=torch.bfloat16, requires_grad=True)
        layer(x).sum().backward()
        expected = layer.weight.detach().float().sum(dim=0).expand(rows, 8)
        torch.testing.assert_close(x.grad.float(), expected, rtol=4 * U, atol=4 * U)
        torch.testing.assert_close(
            layer.weight.grad.float()[0], x.detach().float().sum(dim=0), rtol=8 * U, atol=8 * U
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_other_linear_is_torchs(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(shape, dtype=dtype) for shape in ((3, 5, 8), (4, 8), (4,)))
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def off(logits: torch.Tensor, exact: torch.Tensor) -> float:
    return float((logits.double() - exact).norm() / exact.norm())


@each_architecture
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("pieces", [[CONTEXT], [5] + [1] * 7], ids=["at once", "with the cache"])
def test_logits_in_bfloat16_are_off_by_their_roundings_only(
    architecture: str, rows: int, pieces: list[int]
) -> None:
    """Some fifteen numbers in a row are rounded in a block; each adds at most a few u to the relative error."""
    model = sharp(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter / 4).bfloat16())  # less sharp: a rounding is not to choose another token
    ids = torch.randint(VOCAB, (rows, CONTEXT), generator=torch.Generator().manual_seed(3))
    exact = model(ids).logits.detach()
    cache = KVCache(CONTEXT)
    half = model.bfloat16()
    logits = torch.cat([half(piece, cache).logits.detach() for piece in ids.split(pieces, dim=1)], dim=1)
    assert 0 < off(logits, exact) < 15 * LAYERS * U


def test_the_same_seed_draws_the_same_in_bfloat16() -> None:
    model = sharp("modern").bfloat16()
    first, second = (generate_batch(model, prompts(), 20, generators=generators()) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("known", "width", "dtype"),
    [
        ({"avx512_bf16": True}, 1024, torch.bfloat16),
        ({"avx512_bf16": True}, 16, torch.float32),
        ({"avx2": True}, 1024, torch.float32),
    ],
)
def test_many_weights_are_halved_where_the_processor_computes_with_them(
    known: dict[str, bool], width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert fastest_dtype(sharp("gpt2", emb_dim=width)) == dtype


# ── the command ───────────────────────────────────────────────────────────────────────────────────


def test_the_command_continues_several_prompts_as_each_alone_with_its_seed(trained_project: Project) -> None:
    together = trained_project.succeed("generate", "the river", "a", "the light and the", "--seed", "5").out
    own = [
        trained_project.succeed("generate", prompt, "--seed", str(5 + number)).out
        for number, prompt in enumerate(("the river", "a", "the light and the"))
    ]
    assert together == "".join(own)


def test_the_command_takes_the_precision_that_is_asked_for(
    trained_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.commands import generate as stage

    used: list[torch.dtype] = []

    def seen(model: LanguageModel, *_: object, **__: object) -> list[list[int]]:
        used.append(head_weight(model).dtype)
        return [[]]

    monkeypatch.setattr(stage, "generate_batch", seen)
    for precision in ("fp32", "bf16", "auto"):
        trained_project.succeed("generate", "the", "--precision", precision)
    assert used == [torch.float32, torch.bfloat16, torch.float32]  # a tiny model gains nothing
