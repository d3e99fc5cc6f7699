"""The contract of a sampler."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.authoring.testing.toy import instance_of, keeps_no_state
from pipeline.plugin.calls import supported_arguments
from pipeline.plugin.components import Sampler


@keeps_no_state
def check_sampler(component: type[Sampler] | Sampler) -> None:
    """Checks a sampler: same shape, independent rows, −inf stays −inf, and at least one token per row, for several
    draws."""
    sampler = instance_of(component)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 13, generator=generator)
    logits[1, 3:] = -torch.inf
    logits[2, 1:] = -torch.inf  # one token left
    logits[3] = 0.0  # all equal
    tokens = torch.randint(13, (4, 7), generator=generator)
    first = [_apply_to_row(sampler, logits, tokens, row, {}) for row in range(4)]
    if not supported_arguments(sampler, "__call__", prompt_length=0, memory={}):
        original, original_tokens = logits.clone(), tokens.clone()
        result = sampler(logits, tokens)
        assert torch.equal(logits, original), "the given logits must not be changed"
        assert torch.equal(tokens, original_tokens), "the given tokens must not be changed"
        assert result.shape == logits.shape, f"logits {tuple(logits.shape)}, not {tuple(result.shape)}"
        assert torch.allclose(torch.cat(first), result), "a row must not depend on the other rows"
    again = [_apply_to_row(sampler, logits, tokens, row, {}) for row in range(4)]
    assert all(map(torch.equal, first, again)), (
        "a sampler must not be random: the token is drawn after all samplers"
    )
    for row in range(4):
        sequence, memory = tokens[[row]], dict[str, Any]()
        for _ in range(5):
            drawn = _apply_to_row(sampler, logits[[row]], sequence, 0, memory).argmax(dim=-1, keepdim=True)
            sequence = torch.cat([sequence, drawn], dim=1)


def _apply_to_row(
    sampler: Sampler, logits: torch.Tensor, tokens: torch.Tensor, row: int, memory: dict[str, Any]
) -> torch.Tensor:
    """Applies a sampler to a single row, and checks the result."""
    row_logits, row_tokens = logits[[row]], tokens[[row]]
    original, original_tokens = row_logits.clone(), row_tokens.clone()
    result = sampler(
        row_logits, row_tokens, **supported_arguments(sampler, "__call__", prompt_length=7, memory=memory)
    )
    assert torch.equal(row_logits, original), "the given logits must not be changed"
    assert torch.equal(row_tokens, original_tokens), "the given tokens must not be changed"
    assert result.shape == row_logits.shape, f"logits {tuple(row_logits.shape)}, not {tuple(result.shape)}"
    assert not result.isnan().any(), "no logit may be NaN"
    assert result.isfinite().any(dim=-1).all(), "each row must keep at least one token"
    assert (result <= torch.finfo(result.dtype).max).all(), "no logit may be infinite"
    assert not (result.isfinite() & row_logits.isneginf()).any(), "a logit of −inf must stay −inf"
    return result
