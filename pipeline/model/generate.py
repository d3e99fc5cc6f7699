"""Generation: one token at a time with a KV cache, samplers in their order, one draw at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from pipeline.errors import PluginError, raised_by
from pipeline.model.attention import KVCache
from pipeline.model.gpt import GPT
from pipeline.plugin.components import ModelOutput

SamplerLike = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@torch.inference_mode()
def generate(
    model: GPT,
    tokens: torch.Tensor,
    max_new_tokens: int,
    samplers: Sequence[SamplerLike] = (),
    generator: torch.Generator | None = None,
    end: int | None = None,
) -> Iterator[torch.Tensor]:
    """Continues `tokens`.

    When the context is full, the model goes on from the later half of it: the cached keys hold learned
    positions, so they cannot be moved.

    Args:
        model: In eval mode.
        tokens: Ids [B, T], T ≥ 1; of a longer prompt than the context its end is used.
        max_new_tokens: How many to draw.
        samplers: Applied to the logits in order.
        generator: For the draw; None takes the likeliest token, without any randomness.
        end: The id after which nothing follows: generation ends when every row has just drawn it.

    Yields:
        The next ids [B].
    """
    context = model.config.context_length
    cache = KVCache(context)
    new = tokens[:, -context:]
    for _ in range(max_new_tokens):
        if cache.length + new.shape[1] > context:
            cache, new = KVCache(context), tokens[:, -max(context // 2, 1) :]
        output = model(new, cache)
        logits = ModelOutput(output.hidden[:, -1], output.head_weight, output.vocab_size).logits
        new = draw(logits, tokens, samplers, generator)[:, None]
        if end is not None and bool((new == end).all()):
            return
        tokens = torch.cat([tokens, new], dim=1)
        yield new[:, 0]


def draw(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    samplers: Sequence[SamplerLike],
    generator: torch.Generator | None,
) -> torch.Tensor:
    """One id a row [B] from logits [B, V], after the samplers in their order."""
    for sampler in samplers:
        name = getattr(sampler, "name", "temperature")
        try:
            logits = sampler(logits, tokens)
        except Exception as error:
            raise raised_by(f"the sampler {name!r}", error) from error
        if not bool(logits.isfinite().any(dim=-1).all()) or bool(logits.isnan().any()):
            raise PluginError(f"the sampler {name!r} left no token to draw, or NaN among the logits")
    if generator is None:
        return logits.argmax(dim=-1)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
