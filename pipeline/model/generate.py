"""Generation: one token at a time with a KV cache; samplers change the logits in order, then one draw."""

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
"""Parameters beyond which the weights do not fit into a processor's caches, so that each token waits for memory."""


def quickest_precision(model: GPT) -> torch.dtype:
    """The fastest dtype of the weights for generation: bfloat16 if they are many (half the bytes are read for each
    token) and the processor has instructions for it, else float32."""
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

    When the context is full, generation continues from its later half: cached keys include their positions, so they
    cannot be moved.

    Args:
        model: In eval mode.
        tokens: Ids [B, T], T ≥ 1; of a prompt longer than the context the end is used.
        max_new_tokens: How many to draw.
        samplers: Applied to the logits in order.
        generator: For the draws; None takes the most likely token.
        end: The end-of-text id: generation ends when every row draws it.

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

    All rows start at position 0, without padding: shorter prompts are continued while longer ones are still read.

    Args:
        model: In eval mode.
        prompts: The ids of each, at least one.
        max_new_tokens: How many to draw for each.
        samplers: Applied to the logits in order.
        generators: One for each prompt; None takes the most likely tokens.
        end: The end-of-text id, which ends a prompt's continuation and is left out.
        enough: Called with (number of the prompt, id) for each drawn id; True ends that prompt's continuation.

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
        begun = [row for row, length in enumerate(lengths) if length <= position < length + max_new_tokens]
        drawing = [row for row in begun if not ended[row]]
        if not drawing:  # the rows that are left are still reading: later, in one step
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
    """Logits of what follows growing texts, each token of which is computed once.

    Attributes:
        begin: The position in the texts where the cache begins; the model does not see what is before it.
        read: How many of the texts' tokens are computed.
    """

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.context = model.config.context_length
        self.forget()

    def forget(self) -> None:
        """Empties the cache: the next call reads the end of the texts, as much as fits into the context."""
        self.cache = KVCache(self.context)
        self.begin = self.read = 0

    def back_to(self, length: int) -> None:
        """Cuts the cache to the texts' first `length` tokens less one: the next call needs the last one's logits.

        If that leaves less than half a context, the cache is emptied instead, so that more of the text is seen.
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

        When the new tokens do not fit into the cache, it is emptied and the end of the texts is read again: half a
        context, or all new tokens if they are more, but at most a context.
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
