"""The shipped samplers: what each keeps, and that together they always leave a token to draw."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.generate import draw
from pipeline.plugin.components import Sampler
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["samplers"])
NO_TOKENS = torch.zeros(1, 0, dtype=torch.long)


def make(name: str, **options: float) -> Sampler:
    sampler: Sampler = REGISTRY.build("samplers", name, {name: options}, "evaluate.samplers")
    return sampler


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def apply(logits: torch.Tensor, *samplers: Sampler) -> torch.Tensor:
    for sampler in samplers:
        logits = sampler(logits, NO_TOKENS)
    return logits


def kept_tokens(logits: torch.Tensor, *samplers: Sampler) -> list[list[int]]:
    return [row.isfinite().nonzero()[:, 0].tolist() for row in apply(logits, *samplers)]


@pytest.mark.parametrize(
    ("p", "expected"), [(0.5, [0]), (0.7, [0, 1]), (0.85, [0, 1]), (0.95, [0, 1, 2]), (1.0, [0, 1, 2])]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_p(p: float, expected: list[int]) -> None:
    assert kept_tokens(logits_of(0.6, 0.3, 0.1), make("top_p", p=p)) == [expected]


def test_top_p_keeps_the_likeliest_wherever_it_stands() -> None:
    assert kept_tokens(torch.tensor([[0.1, 0.3, 0.6], [0.6, 0.1, 0.3]]).log(), make("top_p", p=0.5)) == [[2], [0]]


def test_top_p_never_leaves_a_row_empty() -> None:
    assert kept_tokens(logits_of(0.25, 0.25, 0.25, 0.25), make("top_p", p=1e-9)) == [[0]]


def test_top_k_then_top_p_renormalises_between() -> None:
    # Among the two likeliest, the first has 0.4 / 0.7 = 0.57 of the probability: it reaches 0.5 alone.
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert kept_tokens(logits, make("top_k", k=2), make("top_p", p=0.5)) == [[0]]
    assert kept_tokens(logits, make("top_p", p=0.5), make("top_k", k=2)) == [[0, 1]]


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [1, 2]), (3, [0, 1, 2]), (100, [0, 1, 2])])
def test_top_k_keeps_exactly_k(k: int, expected: list[int]) -> None:
    assert kept_tokens(logits_of(0.1, 0.6, 0.3), make("top_k", k=k)) == [expected]


def test_top_1_keeps_one_token_also_among_equals() -> None:
    assert len(kept_tokens(torch.zeros(1, 5), make("top_k", k=1))[0]) == 1


@pytest.mark.parametrize("sampler", [make("temperature", value=0.0), make("greedy"), make("top_k", k=1)])
def test_temperature_0_greedy_and_top_1_equal_argmax(sampler: Sampler) -> None:
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(draw(logits, NO_TOKENS, [sampler], generator), logits.argmax(dim=-1))


def test_temperature_divides_the_logits() -> None:
    logits = logits_of(0.6, 0.3, 0.1)
    found = apply(logits, make("temperature", value=2.0)).softmax(dim=-1)
    torch.testing.assert_close(found, (logits / 2).softmax(dim=-1))
    assert torch.equal(apply(logits, make("temperature", value=1.0)).argsort(), logits.argsort())


@pytest.mark.parametrize("value", [1e-3, 1e-30, 1e-45, 1e-300, 5e-324])
def test_a_tiny_temperature_is_argmax_not_nan(value: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -math.inf]])
    probabilities = apply(logits, make("temperature", value=value)).softmax(dim=-1)
    assert probabilities.tolist() == [[0, 1, 0, 0]]


SAMPLERS = st.one_of(
    st.builds(lambda value: make("temperature", value=value), st.floats(0, 100)),
    st.builds(lambda k: make("top_k", k=k), st.integers(1, 30)),
    st.builds(lambda p: make("top_p", p=p), st.floats(0, 1, exclude_min=True)),
    st.just(make("greedy")),
)
ROWS = st.integers(1, 20).flatmap(
    lambda width: st.lists(
        st.lists(st.floats(-50, 50, width=32), min_size=width, max_size=width), min_size=1, max_size=3
    )
)


@settings(deadline=None)
@given(rows=ROWS, samplers=st.lists(SAMPLERS, max_size=4))
def test_samplers_in_any_order_keep_the_likeliest_token_and_bring_none_back(
    rows: list[list[float]], samplers: list[Sampler]
) -> None:
    logits = torch.tensor(rows)
    for sampler in samplers:
        before, given_logits = logits.clone(), logits
        logits = sampler(given_logits, NO_TOKENS)
        assert torch.equal(given_logits, before), "a sampler leaves what it is given as it is"
        assert logits.shape == before.shape
        assert not logits.isnan().any()
        assert logits[before == -math.inf].eq(-math.inf).all()
        likeliest = (before == before.amax(dim=-1, keepdim=True)) & (logits == logits.amax(dim=-1, keepdim=True))
        assert likeliest.any(dim=-1).all()
    drawn = draw(torch.tensor(rows), NO_TOKENS, samplers, torch.Generator().manual_seed(0))
    assert logits.gather(-1, drawn[:, None]).isfinite().all()


@settings(deadline=None)
@given(rows=ROWS, p=st.floats(0.01, 0.99))
def test_top_p_reaches_p_and_would_not_without_its_last_token(rows: list[list[float]], p: float) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    probabilities = logits.softmax(dim=-1)
    mask = apply(logits, make("top_p", p=p)).isfinite()
    for row, allowed in zip(probabilities, mask, strict=True):
        assert row[allowed].sum() >= p - 1e-9
        assert row[allowed].sum() - row[allowed].min() < p + 1e-9
        assert not (~allowed).any() or row[~allowed].max() <= row[allowed].min()


@pytest.mark.parametrize(
    ("p", "expected"), [(0.0, [0, 1, 2]), (0.3, [0, 1]), (0.5, [0, 1]), (0.51, [0]), (1.0, [0])]
)
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(p: float, expected: list[int]) -> None:
    assert kept_tokens(
        torch.tensor([[math.log(0.6), math.log(0.3) + 1e-6, math.log(0.1)]]), make("min_p", p=p)
    ) == [expected]


def test_typical_prefers_the_expected_surprise_to_the_likeliest_token() -> None:
    # Surprises 0.69, 1.39, 2.08, 2.08 nats, 1.21 of them expected: the second token is nearest.
    logits = logits_of(0.5, 0.25, 0.125, 0.125)
    assert kept_tokens(logits, make("typical", p=0.2)) == [[1]]
    assert kept_tokens(logits, make("typical", p=0.7)) == [[0, 1]]


def test_a_repetition_penalty_makes_earlier_tokens_less_likely_whatever_their_sign() -> None:
    logits, tokens = torch.tensor([[2.0, -1.0, 3.0, -4.0]]), torch.tensor([[0, 1, 0]])
    result = make("repetition_penalty", penalty=2.0)(logits, tokens)
    assert result.tolist() == [[1.0, -2.0, 3.0, -4.0]]
    assert torch.equal(make("repetition_penalty", penalty=1.0)(logits, tokens), logits)
