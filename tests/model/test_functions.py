"""Functions with gradients by hand: they equal torch's own, and their gradients the differences of their values."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from pipeline.model.functions import RMS_EPS, dropped, gelu, keep_mask, relu_squared, rms_norm, rotate, swiglu

Function = Callable[[torch.Tensor], torch.Tensor]
ANGLES = torch.linspace(-3, 3, 4 * 5, dtype=torch.float64).view(5, 4)


def numbers(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """[2, 3, 5, 8], none of them near 0."""
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x + x.sign() * 0.1).to(dtype).requires_grad_()


def turned(x: torch.Tensor) -> torch.Tensor:
    return rotate(x, ANGLES.cos().to(x.dtype), ANGLES.sin().to(x.dtype))


def turned_as_complex(x: torch.Tensor) -> torch.Tensor:
    """Clockwise: times e^(−iθ)."""
    first, second = x.chunk(2, dim=-1)
    result = torch.complex(first, second) * torch.polar(torch.ones_like(ANGLES), -ANGLES).to(
        first.dtype.to_complex()
    )
    return torch.cat([result.real, result.imag], dim=-1)


def compiled_gelu(x: torch.Tensor) -> torch.Tensor:
    """Compiled code has a formula of its own."""
    return torch.compile(gelu, backend="eager", fullgraph=True)(x)  # type: ignore[no-any-return]


PAIRS: dict[str, tuple[Function, Function]] = {
    "rms_norm": (rms_norm, lambda x: F.rms_norm(x, x.shape[-1:], eps=RMS_EPS)),
    "relu_squared": (relu_squared, lambda x: F.relu(x).square()),
    "rotate": (turned, turned_as_complex),
    "compiled gelu": (compiled_gelu, lambda x: F.gelu(x, approximate="tanh")),
}
each_function = pytest.mark.parametrize(("own", "known"), PAIRS.values(), ids=PAIRS)


@each_function
def test_gradients_are_the_differences_of_values(own: Function, known: Function) -> None:
    assert gradcheck(own, (numbers(),))
    assert gradcheck(lambda x: own(x.transpose(0, 1)), (numbers(),))


@each_function
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)], ids=str)
def test_values_and_gradients_are_torchs(
    own: Function, known: Function, dtype: torch.dtype, tolerance: float
) -> None:
    x = numbers(dtype)
    one, other = own(x), known(x)
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    upstream = torch.randn(one.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    (by_own,), (by_known,) = (torch.autograd.grad(each, x, upstream) for each in (one, other))
    torch.testing.assert_close(by_own, by_known, rtol=tolerance, atol=tolerance)


@each_function
def test_in_bfloat16_each_number_is_off_by_a_few_roundings(own: Function, known: Function) -> None:
    x = numbers(torch.bfloat16)
    result, exact = own(x), known(x.detach().double())
    assert result.dtype == torch.bfloat16
    u = torch.finfo(torch.bfloat16).eps / 2
    size = x.detach().double().norm(dim=-1, keepdim=True) if own is turned else exact.abs()
    assert ((result.double() - exact).abs() <= 4 * u * size).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)], ids=str)
def test_a_gates_values_and_gradients_are_torchs(dtype: torch.dtype, tolerance: float) -> None:
    gate, up = numbers(dtype), numbers(dtype).detach().flip(0).requires_grad_()
    one, other = swiglu(gate, up), F.silu(gate) * up
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    for by_own, by_known in zip(
        *(torch.autograd.grad(each.sum(), (gate, up)) for each in (one, other)), strict=True
    ):
        torch.testing.assert_close(by_own, by_known, rtol=tolerance, atol=tolerance)
    if dtype == torch.float64:
        assert gradcheck(swiglu, (gate, up))


def test_in_float16_the_gradient_of_a_small_row_does_not_overflow() -> None:
    x = (numbers().detach() * 0.02).half().requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).half()
    exact = x.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(rms_norm(x), x, upstream)
    (known,) = torch.autograd.grad(PAIRS["rms_norm"][1](exact), exact, upstream.double())
    assert gradient.dtype == torch.float16
    torch.testing.assert_close(gradient.double(), known, rtol=2e-3, atol=2e-3 * known.abs().max().item())


def test_a_row_of_zeros_stays_zero_and_its_gradient_is_finite() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x)
    y.sum().backward()
    assert (y == 0).all()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((2, 8), RMS_EPS**-0.5))


def test_gelu_keeps_its_small_values_and_its_limits() -> None:
    """Where the tanh is near −1, its formula has 3 digits in float32, and that of compiled code has 6."""
    x = torch.cat([torch.linspace(-4, 4, 1001), torch.tensor([0.0, 40.0, torch.inf, torch.nan])])
    exact = F.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(compiled_gelu(x).double(), exact, rtol=4e-6, atol=0, equal_nan=True)
    assert torch.equal(gelu(x)[:-1], F.gelu(x, approximate="tanh")[:-1])  # not compiled: torch's kernel
    assert (compiled_gelu(torch.tensor([-40.0, -1e4])) == 0).all()


@pytest.mark.parametrize("own", [rms_norm, relu_squared])
def test_a_gradient_of_a_gradient_is_an_error_instead_of_a_wrong_number(own: Function) -> None:
    x = numbers()
    (gradient,) = torch.autograd.grad(own(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_angles_get_no_gradient_and_turning_keeps_lengths() -> None:
    cos = ANGLES.cos().requires_grad_()
    x = numbers()
    y = rotate(x, cos, ANGLES.sin())
    y.sum().backward()
    assert cos.grad is None
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


# ── dropout ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_dropout_keeps_its_share_at_every_position(dropout: float) -> None:
    torch.manual_seed(0)
    count = 200_003
    mask = keep_mask((count,), dropout, torch.device("cpu"))
    for part in (mask, mask[: count // 2], *(mask[place::4] for place in range(4))):
        deviation = math.sqrt(dropout * (1 - dropout) / len(part)) + 2 / len(part)
        assert abs(part.double().mean().item() - (1 - dropout)) <= 5 * deviation + 1 / 65536


def test_what_is_kept_is_decided_by_the_seed() -> None:
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(keep_mask((3, 5, 7), 0.5, torch.device("cpu")))
    assert masks[0].shape == (3, 5, 7)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_dropped_numbers_are_zero_and_the_others_larger_in_their_stead() -> None:
    x, mask = torch.ones(4, requires_grad=True), torch.tensor([True, False, True, True])
    y = dropped(x, mask, 0.25)
    torch.testing.assert_close(y, torch.tensor([4 / 3, 0.0, 4 / 3, 4 / 3]))
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    assert dropped(x, None, 0.25) is x
