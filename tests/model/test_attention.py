"""Attention: whichever kernel suits the shapes, each query sees what it may and the numbers are the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.model import attention
from pipeline.model.attention import DocumentMask, KVCache, Rotation, attend
from pipeline.model.functions import keep_mask

U = torch.finfo(torch.bfloat16).eps / 2


def heads(new: int, total: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries [2, 3, new, 8], keys and values [2, 3, total, 8] of which the last belong to the new tokens."""
    generator = torch.Generator().manual_seed(new)
    shapes = [(2, 3, length, 8) for length in (new, total, total)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def causal(new: int, total: int) -> torch.Tensor:
    """[new, total]: token i of the new ones sees all before it and itself."""
    return torch.arange(total)[None, :] <= torch.arange(total - new, total)[:, None]


def documents(new: int, total: int) -> torch.Tensor:
    """[2, 1, new, total]: causal, and within documents that end elsewhere in each row."""
    number = torch.stack([torch.arange(total) >= end for end in (total // 3, total // 2)]).int()
    return (causal(new, total) & (number[:, -new:, None] == number[:, None, :]))[:, None]


MASKS = {"None": None, "causal": causal, "documents": documents}
SHAPES = [(16, 16), (1, 1), (1, 9), (5, 12), (16, 17)]
masked = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
shaped = pytest.mark.parametrize(("new", "total"), SHAPES, ids=str)


@masked
@shaped
def test_in_bfloat16_plain_products_are_off_by_their_roundings_only(new: int, total: int, mask: object) -> None:
    """A score is off by u of its products' sizes and u of itself, a weight by the share e^2δ − 1 of that and u, and
    the sum of the weighted values by u more."""
    q, k, v = heads(new, total, torch.bfloat16)
    given = mask(new, total) if callable(mask) else None
    result = attend(q, k, v, given)
    assert result.dtype == torch.bfloat16

    allowed = given if given is not None else causal(new, total)
    wide = [each.detach().double().requires_grad_() for each in (q, k, v)]
    exact = F.scaled_dot_product_attention(*(each.float() for each in wide), attn_mask=allowed).double()
    scale = 8**-0.5
    scores, sizes = ((a @ b.mT).detach() * scale for a, b in ((wide[0], wide[1]), (wide[0].abs(), wide[1].abs())))
    delta = (U * (sizes + scores.abs())).masked_fill(~allowed, 0.0).amax(dim=-1, keepdim=True)
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    off = weights * ((2 * delta).expm1() + U) @ wide[2].detach().abs() + U * exact.detach().abs()
    assert ((result.double() - exact).abs() <= 1.01 * off + 1e-6).all()

    upstream = torch.randn(exact.shape, generator=torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad(result, (q, k, v), upstream.bfloat16())
    known = torch.autograd.grad(exact, wide, upstream.bfloat16().double())
    for one, other in zip(gradients, known, strict=True):
        assert (one.double() - other).norm() <= 8 * U * other.norm() + 1e-6


@pytest.mark.parametrize(("new", "total"), [(16, 16), (5, 12)], ids=str)
def test_a_causal_mask_that_is_added_gives_the_bits_of_one_that_is_filled_in(new: int, total: int) -> None:
    """Plain products, compiled or not: compiled code contains the mask as a constant, one for each shape."""
    compiled = torch.compile(attend, backend="eager", fullgraph=True, dynamic=False)
    q, k, v = heads(new, total, torch.bfloat16)
    filled = attend(q, k, v, causal(new, total))
    known = torch.autograd.grad(filled.float().square().sum(), (q, k, v))
    for run in (attend, compiled):
        added = run(q, k, v, None)
        assert torch.equal(added, filled)
        assert all(map(torch.equal, torch.autograd.grad(added.float().square().sum(), (q, k, v)), known))


@masked
@shaped
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_kernel_and_plain_products_see_the_same(
    new: int, total: int, mask: object, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = heads(new, total, dtype)
    given = mask(new, total) if callable(mask) else None
    all_kept = torch.ones(2, 3, new, total, dtype=torch.bool)
    plain = attend(q, k, v, given, all_kept, 0.0)
    monkeypatch.setattr(attention, "PLAIN_UP_TO", 0)
    kernel = attend(q, k, v, given)
    tolerance = 16 * U if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(kernel, plain, rtol=tolerance, atol=tolerance)


@shaped
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_new_tokens_after_cached_ones_get_what_they_get_in_the_whole(
    new: int, total: int, dtype: torch.dtype
) -> None:
    q, k, v = heads(total, total, dtype)
    whole = attend(q, k, v, None)[:, :, -new:]
    for mask in (None, causal(new, total)):
        part = attend(q[:, :, -new:], k, v, mask)
        torch.testing.assert_close(part, whole, rtol=0, atol=4 * U if dtype == torch.bfloat16 else 1e-6)


@masked
def test_dropped_weights_are_left_out_and_the_others_larger_in_their_stead(mask: object) -> None:
    q, k, v = heads(6, 6, torch.float64)
    torch.manual_seed(0)
    left = keep_mask((2, 3, 6, 6), 0.4, torch.device("cpu"))
    given = mask(6, 6) if callable(mask) else None
    allowed = given if given is not None else causal(6, 6)
    weights = (q @ k.mT * 8**-0.5).masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    torch.testing.assert_close(attend(q, k, v, given, left, 0.4), (weights * left / 0.6) @ v)


@pytest.mark.parametrize("total", [1, attention.BLOCK, attention.BLOCK + 1, 3 * attention.BLOCK + 7])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_within_documents_blocks_of_queries_give_what_the_whole_product_gives(
    total: int, dropout: float, dtype: torch.dtype
) -> None:
    """Documents end elsewhere in each row, some after a token, one after more than a block."""
    q, k, v = heads(total, total, dtype)
    starts, places = torch.zeros(2, total, dtype=torch.long), torch.arange(total)
    for row, ends in zip(starts, [[3, 4, 60, 64, 130], [90, 91, 100, 101, 195]], strict=True):
        for end in ends:
            row[end:] = end
    torch.manual_seed(0)
    left = keep_mask((2, 3, total, total), dropout, torch.device("cpu")) if dropout else None
    mask = DocumentMask(starts)
    assert torch.equal(mask.dense(), causal(total, total) & (starts[:, None, :, None] <= places))
    upstream = torch.randn(q.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    found = []
    for given in (mask, mask.dense()):
        result = attend(q, k, v, given, left, dropout)
        found.append([result, *torch.autograd.grad(result, (q, k, v), upstream)])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8 * U}[dtype]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_a_cache_holds_the_keys_and_values_of_each_block_in_order() -> None:
    cache, parts = KVCache(8), torch.randn(2, 4, 3, 7, 5)  # of 4: keys and values of two blocks
    for start, end in ((0, 3), (3, 4), (4, 7)):
        for layer in (0, 1):
            keys, values = cache.extend(layer, *(parts[:, 2 * layer + x, :, start:end] for x in (0, 1)))
            assert torch.equal(keys, parts[:, 2 * layer, :, :end])
            assert torch.equal(values, parts[:, 2 * layer + 1, :, :end])
        cache.length = end


# ── positions ─────────────────────────────────────────────────────────────────────────────────────


def test_a_match_of_query_and_key_depends_on_their_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def match(query_at: int, key_at: int) -> torch.Tensor:
        turned = [Rotation.at(torch.tensor([at]), 24)(x) for x, at in ((q, query_at), (k, key_at))]
        return (turned[0] * turned[1]).sum()

    for distance in (0, 1, 7):
        torch.testing.assert_close(match(distance, 0), match(100 + distance, 100), rtol=1e-4, atol=1e-4)
    assert abs(match(7, 0) - match(0, 0)) > 0.1


def test_the_first_position_is_not_turned_and_later_ones_are_the_same_wherever_they_begin() -> None:
    whole, part = Rotation.at(torch.arange(9), 8), Rotation.at(torch.arange(4, 9), 8)
    assert (whole.cos[0] == 1).all()
    assert (whole.sin[0] == 0).all()
    assert torch.equal(whole.cos[4:], part.cos)
    assert torch.equal(whole.sin[4:], part.sin)
    assert whole.sin[1].tolist() == pytest.approx(
        [torch.tensor(10_000.0 ** (-i / 4)).sin().item() for i in range(4)]
    )
