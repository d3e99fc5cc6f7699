"""Generation: one token at a time with a KV cache, samplers in their order, one draw at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from pipeline.core.errors import PluginError, raised_by
from pipeline.model.attention import KVCache
from pipeline.model.device import computes_bf16
from pipeline.model.functions import linear
from pipeline.model.gpt import GPT

SamplerLike = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_WORTH_HALVING = 10_000_000
"""Parameters from which each token waits for the weights to come from memory: what a processor's caches hold."""


def quickest_precision(model: GPT) -> torch.dtype:
    """What to cast a model's weights to that is only generated with: bfloat16 where they are many and the processor
    has instructions for it, since half as many bytes are read for each token; else float32."""
    halved = model.parameter_count() >= _WORTH_HALVING and computes_bf16(model.head_weight.device)
    return torch.bfloat16 if halved else torch.float32


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
    tokens = tokens[:, -model.config.context_length :]
    reader = Reader(model)
    for _ in range(max_new_tokens):
        new = draw(reader(tokens), tokens, samplers, generator)
        if end is not None and bool((new == end).all()):
            return
        tokens = torch.cat([tokens, new[:, None]], dim=1)
        yield new


@torch.inference_mode()
def continuations(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    samplers: Sequence[SamplerLike] = (),
    generators: Sequence[torch.Generator] | None = None,
    end: int | None = None,
    enough: Callable[[int, int], bool] | None = None,
) -> list[list[int]]:
    """Continues several prompts at once, each as `generate` would alone.

    They begin at the same position, so that nothing is padded: the shorter ones are continued while the longer ones
    are still read.

    Args:
        model: In eval mode.
        prompts: The ids of each, at least one.
        max_new_tokens: How many to draw for each.
        samplers: Applied to the logits in order.
        generators: For each prompt's draws; None takes the likeliest token each time.
        end: The id after which nothing follows; it is left out.
        enough: Called with (number of the prompt, id) for each id that is drawn: whether it was that prompt's last.

    Returns:
        For each prompt the ids that follow.
    """
    cut = [list(prompt)[-model.config.context_length :] for prompt in prompts]
    lengths = [len(prompt) for prompt in cut]
    device = model.head_weight.device
    texts = torch.zeros(len(cut), max(lengths) + max_new_tokens, dtype=torch.long, device=device)
    for row, prompt in enumerate(cut):
        texts[row, : len(prompt)] = torch.tensor(prompt)
    drawn: list[list[int]] = [[] for _ in cut]
    ended = [False] * len(cut)
    reader = Reader(model)
    for position in range(min(lengths), texts.shape[1]):
        drawing = [
            row
            for row, length in enumerate(lengths)
            if not ended[row] and length <= position < length + max_new_tokens
        ]
        if not drawing:  # the next to draw is still to be read: all of it at once
            continue
        logits = reader(texts[:, :position])
        for row in drawing:
            own = slice(row, row + 1)
            generator = generators[row] if generators is not None else None
            token = draw(logits[own], texts[own, :position], samplers, generator)
            ended[row] = int(token) == end
            if not ended[row]:
                texts[row, position] = token[0]
                drawn[row].append(int(token))
                ended[row] = enough is not None and enough(row, int(token))
    return drawn


class Reader:
    """Reads texts that grow, and remembers what it has read of them.

    Attributes:
        begin: Where in the texts the cache begins: what lies before is no longer seen.
        read: How many of the texts' tokens have been read.
    """

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.context = model.config.context_length
        self.forget()

    def forget(self) -> None:
        """Begins anew: the next call reads the end of the texts, as much of it as the context holds."""
        self.cache = KVCache(self.context)
        self.begin = self.read = 0

    def back_to(self, length: int) -> None:
        """Takes back what was read beyond the texts' first `length` tokens, and the last of these, which the next
        call reads again: what follows it is not kept.

        Where the cache begins so late that little would be left in it, the texts' end is read anew.
        """
        left = length - self.begin - 1
        if left < 0 or (self.begin and left < self.context // 2):
            self.forget()
        elif length <= self.read:
            self.read, self.cache.length = length - 1, left
            if self.cache.tokens is not None:
                self.cache.tokens = self.cache.tokens[:, :left]

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """All of the texts so far [B, T] → the logits of what follows [B, V], in float32 (or wider).

        When the context is full, it is emptied, and the later half of it read again with what is new; of more than
        it holds, the end.
        """
        new = tokens[:, self.read :]
        if self.cache.length + new.shape[1] > self.context:
            self.cache = KVCache(self.context)
            new = tokens[:, -min(max(self.context // 2, new.shape[1]), self.context) :]
            self.begin = tokens.shape[1] - new.shape[1]
        output = self.model(new, self.cache)
        self.read = tokens.shape[1]
        logits = linear(output.hidden[:, -1], output.head_weight[: output.vocab_size])
        return logits if logits.element_size() >= 4 else logits.float()


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
