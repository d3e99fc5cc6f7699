"""The linear cross-entropy: the numbers of the plain one on all logits, which it never holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gpu_code import NoHostReads
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model import functions, linear_cross_entropy
from pipeline.model.linear_cross_entropy import FusedOutput, chunks, softmax_and_gradient
from pipeline.plugin.components import IGNORED, ModelOutput

WIDTH, VOCAB, PADDED = 8, 37, 48
SHAPE = (3, 11)
ROWS = SHAPE[0] * SHAPE[1]
TERMS = [{}, {"label_smoothing": 0.1}, {"z_loss": 0.02}, {"label_smoothing": 0.2, "z_loss": 0.1}]


@pytest.fixture(params=[1 << 25, 7 * PADDED, 1], ids=["at once", "seven rows", "row by row"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several sizes of a chunk."""
    monkeypatch.setattr(linear_cross_entropy, "_LOGITS_AT_ONCE", request.param)


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a head whose padding rows would win every softmax, and targets of which some are ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*SHAPE, WIDTH, generator=generator, dtype=torch.float64)
    head = torch.randn(PADDED, WIDTH, generator=generator, dtype=torch.float64)
    head[VOCAB:] *= 100
    targets = torch.randint(VOCAB, SHAPE, generator=generator)
    targets[0, 3:6] = targets[2, -1] = IGNORED
    return hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_(), targets


def on_all_logits(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """The same by torch's own functions."""
    logits = hidden @ head[:VOCAB].T
    nats = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none",
        label_smoothing=label_smoothing,
    ).view(targets.shape)  # fmt: skip
    return nats + z_loss * logits.logsumexp(-1).square() * (targets != IGNORED)


def fused(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, **terms: float) -> torch.Tensor:
    return FusedOutput(hidden, head, VOCAB).cross_entropy(targets, **terms)


def weights(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Another weight for each target."""
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


WEIGHTED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda nats: nats.sum(),
    "scaled sum": lambda nats: nats.sum() * 0.3,
    "mean": lambda nats: nats.mean(),
    "weighted": lambda nats: (nats * weights(nats.dtype)).sum(),
    "some left out": lambda nats: nats[:, 2:].sum(),
}


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("total", WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
def test_values_and_gradients_are_those_of_all_logits(
    dtype: torch.dtype, tolerance: float, terms: dict[str, float], total: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    hidden, head, targets = problem(dtype)
    nats, expected = fused(hidden, head, targets, **terms), on_all_logits(hidden, head, targets, **terms)
    torch.testing.assert_close(nats, expected, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(total(nats), (hidden, head))
    for one, other in zip(gradients, torch.autograd.grad(total(expected), (hidden, head)), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_ignored_targets_and_padding_rows_cost_nothing_and_learn_nothing(terms: dict[str, float]) -> None:
    hidden, head, targets = problem()
    for wanted in (targets, torch.full_like(targets, IGNORED)):
        ignored = wanted == IGNORED
        for total in (WEIGHTED["sum"], WEIGHTED["weighted"]):
            nats = fused(hidden, head, wanted, **terms)
            by_hidden, by_head = torch.autograd.grad(total(nats), (hidden, head))
            assert (nats[ignored] == 0).all()
            assert (by_hidden[ignored] == 0).all()
            assert (by_head[VOCAB:] == 0).all()
            assert by_head.isfinite().all()
    assert (by_head == 0).all()


@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_the_models_output_and_a_plain_one_agree(terms: dict[str, float]) -> None:
    hidden, head, targets = problem()
    plain, own = (kind(hidden, head, VOCAB).cross_entropy(targets, **terms) for kind in (ModelOutput, FusedOutput))
    torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(own.sum(), (hidden, head)),
        torch.autograd.grad(plain.sum(), (hidden, head)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("chunked")
def test_gradients_accumulate_over_batches_as_over_one() -> None:
    hidden, head, targets = problem()
    scale = 1 / int((targets != IGNORED).sum())
    (fused(hidden, head, targets).sum() * scale).backward()
    at_once, head.grad, hidden.grad = (hidden.grad, head.grad), None, None
    for row in range(SHAPE[0]):
        (fused(hidden[row : row + 1], head, targets[row : row + 1]).sum() * scale).backward()
    for one, other in zip((hidden.grad, head.grad), at_once, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("first", WEIGHTED)
@pytest.mark.parametrize("second", WEIGHTED)
def test_going_backward_twice_gives_each_time_the_gradient_asked_for(first: str, second: str) -> None:
    hidden, head, targets = problem()
    nats, expected = fused(hidden, head, targets), on_all_logits(hidden, head, targets)
    kept = []
    for name in (first, second, first):
        kept.append(torch.autograd.grad(WEIGHTED[name](nats), (hidden, head), retain_graph=True))
    for name, gradients in zip((first, second, first), kept, strict=True):
        known = torch.autograd.grad(WEIGHTED[name](expected), (hidden, head), retain_graph=True)
        for one, other in zip(gradients, known, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_gradient_of_a_gradient_is_an_error_instead_of_a_wrong_number() -> None:
    hidden, head, targets = problem()
    for total in (torch.sum, lambda nats: nats.square().sum()):
        (gradient,) = torch.autograd.grad(total(fused(hidden, head, targets)), hidden, create_graph=True)
        with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
            gradient.sum().backward()


def test_a_target_that_is_no_token_is_an_error() -> None:
    hidden, head, targets = problem()
    targets[1, 1] = -1
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        fused(hidden, head, targets)


def test_a_batch_of_no_tokens_has_no_nats_and_no_gradient() -> None:
    hidden, head, targets = problem()
    nats = fused(hidden[:, :0], head, targets[:, :0])
    assert nats.shape == (SHAPE[0], 0)
    nats.sum().backward()
    assert (head.grad == 0).all()


# ── bfloat16 ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("total", [WEIGHTED["sum"], WEIGHTED["weighted"]], ids=["sum", "weighted"])
def test_in_bfloat16_nothing_is_further_off_than_its_roundings(
    total: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """With u, half of bfloat16's last bit: a logit is off by u·|logit|, so a nat by at most twice the largest of
    these, and p by that share of itself; a logit's gradient is rounded once or twice, each sum of products once."""
    u = torch.finfo(torch.bfloat16).eps / 2
    wide_hidden, wide_head, targets = problem()
    hidden = wide_hidden.detach().bfloat16().requires_grad_()
    head = wide_head.detach().bfloat16().float().requires_grad_()  # as in training: the weights are float32
    exact_hidden, exact_head = hidden.detach().double().requires_grad_(), head.detach().double().requires_grad_()
    nats = fused(hidden, head, targets)
    assert nats.dtype == torch.float32
    logits = (exact_hidden @ exact_head[:VOCAB].T).detach().flatten(0, 1)
    expected = on_all_logits(exact_hidden, exact_head, targets)
    off = 2 * u * logits.abs().amax(dim=1, keepdim=True)
    assert ((nats.double() - expected).abs().flatten() <= off[:, 0] * 1.01 + 1e-6).all()

    by_hidden, by_head = torch.autograd.grad(total(nats), (hidden, head))
    assert (by_hidden.dtype, by_head.dtype) == (torch.bfloat16, torch.float32)
    known_hidden, known_head = torch.autograd.grad(total(expected), (exact_hidden, exact_head))
    upstream = (
        torch.autograd.grad(total(expected := nats.detach().requires_grad_()), expected)[0].double().flatten()
    )
    counted = (targets != IGNORED).flatten()[:, None]
    p = logits.softmax(dim=1)
    gradient = p - F.one_hot(targets.clamp(min=0).flatten(), VOCAB)
    g_off = (p * off.expm1() + 3 * u * gradient.abs()) * counted * upstream.abs()[:, None]
    size = gradient.abs() * counted * upstream.abs()[:, None]
    hidden_off = g_off @ exact_head[:VOCAB].abs() + 2 * u * known_hidden.flatten(0, 1).abs()
    assert ((by_hidden.double() - known_hidden).abs().flatten(0, 1) <= 1.01 * hidden_off + 1e-6).all()
    absolute = exact_hidden.detach().flatten(0, 1).abs()
    head_off = g_off.T @ absolute + 2 * u * (size.T @ absolute)
    assert ((by_head.double() - known_head).abs()[:VOCAB] <= 1.01 * head_off + 1e-6).all()


@pytest.mark.parametrize("total", [WEIGHTED["sum"], WEIGHTED["weighted"]], ids=["sum", "weighted"])
def test_under_autocast_hidden_states_of_a_wider_precision_do(
    total: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    hidden, head, targets = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        nats = fused(hidden, head, targets)
    assert nats.dtype == torch.float32
    by_hidden, by_head = torch.autograd.grad(total(nats), (hidden, head))  # outside, as in training
    assert by_hidden.dtype == by_head.dtype == torch.float32
    rounded = hidden.detach().bfloat16().requires_grad_()
    same = fused(rounded, head, targets)
    assert torch.equal(nats, same)
    assert torch.equal(by_hidden, torch.autograd.grad(total(same), rounded)[0].float())


@pytest.fixture
def wide_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products with a wider result, which torch has on CUDA only."""

    def widened(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def multiply(*args: torch.Tensor, out_dtype: torch.dtype | None = None, **options: Any) -> torch.Tensor:
            *others, left, right = args
            if out_dtype is not None:
                assert {left.dtype, right.dtype} <= {torch.float16, torch.bfloat16}
                left, right = left.to(out_dtype), right.to(out_dtype)
            return product(*others, left, right, **options)

        return multiply

    for name in ("mm", "addmm"):
        monkeypatch.setattr(torch, name, widened(getattr(torch, name)))


# ── float16 and gradient scalers ──────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("wide_products")
@pytest.mark.parametrize("path", ["cpu", "cuda"])
@pytest.mark.parametrize("total", [WEIGHTED["sum"], WEIGHTED["weighted"]], ids=["sum", "weighted"])
@pytest.mark.parametrize("scale", [2.0**-24, 1e-3, 1.0, 65536.0, 2.0**20])
def test_under_float16_autocast_any_gradient_scale_gives_the_scaled_gradients(
    scale: float, total: Callable[[torch.Tensor], torch.Tensor], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 holds hidden states' gradients from 2^-24 to 65504: the width of the head's weights makes the scaled
    ones fit. They are off by the roundings of logits, of logits' gradients and of each product."""
    monkeypatch.setattr(functions, "code_path", lambda device: path)
    hidden, head, targets = problem(torch.float32)
    with torch.no_grad():
        hidden.copy_(hidden.half())
        head[:VOCAB] = (head[:VOCAB] * 0.02 * min(1.0, 65536 / scale)).half()
    with torch.autocast("cpu", torch.float16):
        nats = fused(hidden, head, targets)
    by_hidden, by_head = torch.autograd.grad(total(nats) * scale, (hidden, head))
    exact = [each.detach().double().requires_grad_() for each in (hidden, head)]
    expected = on_all_logits(*exact, targets)
    torch.testing.assert_close(nats.double(), expected, rtol=2e-3, atol=2e-3)
    known = torch.autograd.grad(total(expected), exact)
    u = torch.finfo(torch.float16).eps / 2
    tiny = 2.0**-25 * by_hidden.numel() ** 0.5  # half of the last bit of float16's smallest numbers
    assert (by_hidden.double() - scale * known[0]).norm() <= 4 * u * scale * known[0].norm() + tiny
    assert (by_head.double() - scale * known[1]).norm() <= 4 * u * scale * known[1].norm()


def test_a_gradient_scale_without_bounds_gives_no_finite_gradient() -> None:
    """A gradient scaler finds the overflow and skips the step."""
    hidden, head, targets = problem(torch.float32)
    for total in (WEIGHTED["sum"], WEIGHTED["weighted"]):
        with torch.autocast("cpu", torch.float16):
            nats = fused(hidden, head, targets)
        (gradient,) = torch.autograd.grad(total(nats) * 1e30, hidden)
        assert not gradient.isfinite().all()


# ── a GPU's code, run on a CPU ────────────────────────────────────────────────────────────────────


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a GPU, with chunks of eight rows."""
    monkeypatch.setattr(functions, "code_path", lambda device: "cuda")
    monkeypatch.setattr(linear_cross_entropy, "_LEAST_ROWS_ON_CUDA", 8)
    monkeypatch.setattr(linear_cross_entropy, "_LOGITS_AT_ONCE_ON_CUDA", 1)


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("total", WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_a_gpu_computes_the_same_and_the_host_reads_nothing(
    terms: dict[str, float], total: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    hidden, head, targets = problem()
    with NoHostReads():
        nats = fused(hidden, head, targets, **terms)
        gradients = torch.autograd.grad(total(nats), (hidden, head))
    expected = on_all_logits(hidden, head, targets, **terms)
    torch.testing.assert_close(nats, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients, torch.autograd.grad(total(expected), (hidden, head)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("as_on_cuda", "wide_products")
def test_a_gpu_adds_bfloat16_products_in_float32_without_rounding_them() -> None:
    hidden, head, targets = problem()
    hidden, head = hidden.detach().bfloat16().requires_grad_(), head.detach().bfloat16().float().requires_grad_()
    by_head = torch.autograd.grad(fused(hidden, head, targets).sum(), head)[0]
    logits = hidden.flatten(0, 1) @ head.bfloat16().T
    _, gradient = softmax_and_gradient(logits.detach(), targets.flatten(), linear_cross_entropy.LossTerms(VOCAB))
    expected = gradient.double().T @ hidden.detach().flatten(0, 1).double()
    torch.testing.assert_close(by_head.double(), expected, rtol=1e-5, atol=1e-6)


# ── what it costs ─────────────────────────────────────────────────────────────────────────────────


class Watch(TorchDispatchMode):
    """Notes the largest tensor that an operation made, and how many matrix products there were."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.untyped_storage().nbytes() // each.element_size())
        self.products += func is torch.ops.aten.mm.default or func is torch.ops.aten.mm.out
        return result


ALL = ROWS * PADDED
AT_ONCE = 6 * PADDED


@pytest.mark.parametrize("total", WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_all_logits_are_never_there(
    terms: dict[str, float], total: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_cross_entropy, "_LOGITS_AT_ONCE", AT_ONCE)
    hidden, head, targets = problem()
    with Watch() as plain:
        total(ModelOutput(hidden, head, VOCAB).cross_entropy(targets, **terms)).backward()
    assert plain.largest >= ROWS * VOCAB
    with Watch() as watch:
        total(fused(hidden, head, targets, **terms)).backward()
    assert watch.largest <= max(AT_ONCE, PADDED * WIDTH, ROWS * WIDTH) < ROWS * VOCAB


@pytest.mark.parametrize(("total", "products"), [("sum", 3), ("scaled sum", 3), ("weighted", 6)])
def test_logits_are_computed_again_only_where_targets_are_weighted_differently(total: str, products: int) -> None:
    hidden, head, targets = problem()
    with Watch() as watch:
        WEIGHTED[total](fused(hidden, head, targets)).backward()
    assert watch.products == products


def test_without_gradients_none_are_computed() -> None:
    hidden, head, targets = problem()
    with Watch() as watch, torch.no_grad():
        fused(hidden, head, targets)
    assert watch.products == 1
    with Watch() as watch:
        fused(hidden.detach(), head.detach(), targets)
    assert watch.products == 1


@given(rows=st.integers(0, 500), vocab_size=st.integers(1, 1 << 27))
def test_chunks_are_all_rows_in_order_and_few_enough_at_a_time(rows: int, vocab_size: int) -> None:
    slices = list(chunks(rows, vocab_size, "cpu", 1 << 25))
    assert [row for each in slices for row in range(rows)[each]] == list(range(rows))
    sizes = {each.stop - each.start for each in slices}
    assert all(0 < size * vocab_size <= 1 << 25 or size == 1 for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(rows=st.integers(0, 1 << 20), vocab_size=st.integers(1, 1 << 20))
def test_on_cuda_chunks_are_large_powers_of_two_and_one_rest(rows: int, vocab_size: int) -> None:
    slices = list(chunks(rows, vocab_size, "cuda", 1 << 25))
    assert [each.start for each in slices] == [0, *(each.stop for each in slices)][: len(slices)]
    assert slices[-1].stop == rows if rows else not slices
    sizes = [each.stop - each.start for each in slices]
    if len(sizes) > 1:
        assert len(set(sizes[:-1])) == 1
        assert sizes[0] >= 1024
        assert sizes[0].bit_count() == 1
        assert sizes[0] * vocab_size <= 1 << 28 or sizes[0] == 1024
    assert all(0 < size <= sizes[0] for size in sizes)


def test_a_softmax_of_ones_own_is_used_in_both_directions() -> None:
    hidden, head, targets = problem()
    calls = []

    def counted(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(args)
        return softmax_and_gradient(*args)

    nats = FusedOutput(hidden, head, VOCAB, softmax=counted).cross_entropy(targets)
    assert len(calls) == 1
    WEIGHTED["weighted"](nats).backward()
    assert len(calls) == 2


def test_compiled_code_computes_more_logits_at_once_but_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, targets = problem()
    monkeypatch.setattr(linear_cross_entropy, "_LOGITS_AT_ONCE", 3 * PADDED)
    monkeypatch.setattr(linear_cross_entropy, "_COMPILED_BYTES_AT_ONCE", 11 * PADDED * hidden.element_size())
    rows = []

    def compiled(logits: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        rows.append(len(logits))
        return softmax_and_gradient(logits, *rest)

    nats = FusedOutput(hidden, head, VOCAB, softmax=compiled).cross_entropy(targets)
    assert rows == [11, 11, 11]
    assert torch.allclose(nats, fused(hidden, head, targets))


def test_a_loss_near_zero_keeps_its_digits() -> None:
    logits = torch.zeros(1, 4)
    logits[0, 2] = 30.0
    exact = torch.log1p(3 * torch.exp(torch.tensor(-30.0, dtype=torch.float64)))
    for offset in (0.0, 1000.0):
        nats, gradient = softmax_and_gradient(logits + offset, torch.tensor([2]), linear_cross_entropy.LossTerms(4))
        assert abs(nats.item() - exact.item()) < 1e-7
        assert gradient[0, 0].item() == pytest.approx(math.exp(-30.0), rel=1e-5)
