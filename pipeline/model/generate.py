"""Generation: one token at a time, with the model's cache; samplers change the logits in order, then one draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.core.errors import PluginError
from pipeline.model.architecture import LanguageModel, checked_forward
from pipeline.model.device import computes_bf16, device_of
from pipeline.model.functions import linear
from pipeline.plugin.calls import calling, label, supported_arguments
from pipeline.plugin.components import Sampler

SamplerLike = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_BF16_MIN_PARAMETERS = 10_000_000
"""Parameters beyond which the weights do not fit into a processor's caches, so that each token waits for memory."""


def fastest_dtype(model: LanguageModel) -> torch.dtype:
    """The fastest dtype of the weights for generation: bfloat16 if they are many (half the bytes are read for each
    token) and the processor has instructions for it, else float32."""
    many = model.architecture.parameter_count >= _BF16_MIN_PARAMETERS
    halve = many and computes_bf16(device_of(model))
    return torch.bfloat16 if halve else torch.float32


@torch.inference_mode()
def generate(
    model: LanguageModel,
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
    text = Decoder(model, tokens[:, -model.architecture.shape.context_length :])
    states = [SequenceState(len(text)) for _ in tokens]
    for _ in range(max_new_tokens):
        new = draw(text.logits(), text.tokens, samplers, generator, states)
        if end is not None and bool((new == end).all()):
            return
        text.add(new[:, None])
        yield new


@torch.inference_mode()
def generate_batch(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    samplers: Sequence[SamplerLike] = (),
    generators: Sequence[torch.Generator] | None = None,
    end: int | None = None,
    should_stop: Callable[[int, int], bool] | None = None,
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
        should_stop: Called with (number of the prompt, id) for each drawn id; True ends that prompt's continuation.

    Returns:
        For each prompt the ids that follow.
    """
    cut = [list(prompt)[-model.architecture.shape.context_length :] for prompt in prompts]
    lengths = [len(prompt) for prompt in cut]
    device = device_of(model)
    ids = torch.zeros(len(cut), max(lengths) + max_new_tokens, dtype=torch.long, device=device)
    for row, prompt in enumerate(cut):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    drawn: list[list[int]] = [[] for _ in cut]
    ended = [False] * len(cut)
    text, states = Decoder(model, ids), [SequenceState(length) for length in lengths]
    for position in range(min(lengths), ids.shape[1]):
        active = [row for row, length in enumerate(lengths) if length <= position < length + max_new_tokens]
        unfinished = [row for row in active if not ended[row]]
        if not unfinished:  # the rows that are left are still reading: later, in one step
            continue
        text.tokens = ids[:, :position]
        logits = text.logits()
        for row in unfinished:
            this_row = slice(row, row + 1)
            generator = generators[row] if generators is not None else None
            token = int(draw(logits[this_row], text.tokens[this_row], samplers, generator, states[this_row]))
            ended[row] = token == end
            if not ended[row]:
                ids[row, position] = token
                drawn[row].append(token)
                ended[row] = should_stop is not None and should_stop(row, token)
    return drawn


class Decoder:
    """Texts that grow at their end, or are cut, and the logits of what follows.

    Each token is computed once where the model has a cache; without one, all that is seen is computed each time.

    Attributes:
        tokens: Ids [B, T], computed or not.
        first_visible: How many of the first tokens the model no longer sees: the cache begins after them.
    """

    def __init__(self, model: LanguageModel, tokens: torch.Tensor) -> None:
        self._model, self._context, self.tokens = model, model.architecture.shape.context_length, tokens
        self._reset_cache()

    def _reset_cache(self) -> None:
        """Empties the cache: the end of the texts is computed again, as much as fits into the context."""
        self._cache = self._new_cache()
        self.first_visible = self._computed = 0

    def _new_cache(self) -> Any:
        """An empty cache; None where the model has none."""
        make = getattr(self._model, "make_cache", None)
        if make is None:
            return None
        with calling(self._model.architecture.component):
            return make(len(self.tokens))

    def __len__(self) -> int:
        return self.tokens.shape[1]

    def add(self, new: torch.Tensor) -> None:
        """Adds ids [B, n] at the end."""
        self.tokens = torch.cat([self.tokens, new], dim=1)

    def truncate(self, length: int) -> None:
        """Cuts the texts to the first `length` tokens; the last of them is computed again for its logits.

        If that leaves less than half a context of an older text in the cache, the cache is emptied, so that more of
        the text is seen.
        """
        self.tokens = self.tokens[:, :length]
        cached = length - self.first_visible - 1
        if cached < 0 or (self.first_visible and cached < self._context // 2):
            self._reset_cache()
        elif length <= self._computed:
            if self._cache is not None and not hasattr(self._cache, "crop"):
                self._reset_cache()
                return
            self._computed = length - 1
            if self._cache is not None:
                with calling(self._model.architecture.component):
                    self._cache.crop(cached)

    def logits(self) -> torch.Tensor:
        """The logits of what follows [B, V], in float32 (or wider); in inference mode.

        When the new tokens do not fit into the cache, it is emptied and the end of the texts is computed again:
        half a context, or all new tokens if they are more, but at most a context.
        """
        new = self.tokens[:, self._computed :]
        if len(self) - self.first_visible > self._context:
            self._cache = self._new_cache()
            new = self.tokens[:, -min(max(self._context // 2, new.shape[1]), self._context) :]
            self.first_visible = len(self) - new.shape[1]
        if self._cache is None:
            output = checked_forward(self._model, self.tokens[:, self.first_visible :])
        else:
            output = checked_forward(self._model, new, self._cache)
        self._computed = len(self)
        logits = linear(output.hidden[:, -1], output.head_weight[: output.vocab_size])
        return logits if logits.element_size() >= 4 else logits.float()


@dataclass
class SequenceState:
    """What samplers may ask of a sequence beside its tokens.

    Attributes:
        prompt_length: How many of the tokens are the prompt.
        memories: Each sampler's `memory` for this sequence, by the sampler's index.
    """

    prompt_length: int
    memories: dict[int, dict[str, Any]] = field(default_factory=dict)


def draw(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    samplers: Sequence[SamplerLike],
    generator: torch.Generator | None,
    states: Sequence[SequenceState] | None = None,
) -> torch.Tensor:
    """One id a row [B] from logits [B, V], after the samplers in their order; without `states`, as the first one
    after a prompt."""
    states = states or [SequenceState(tokens.shape[1]) for _ in tokens]
    for number, sampler in enumerate(samplers):
        if isinstance(sampler, Sampler):
            with calling(sampler):
                logits = _check_logits(sampler, _call_sampler(sampler, number, logits, tokens, states), logits)
        else:
            logits = sampler(logits, tokens)
    if generator is None:
        return logits.argmax(dim=-1)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


def _call_sampler(
    sampler: Sampler, number: int, logits: torch.Tensor, tokens: torch.Tensor, states: Sequence[SequenceState]
) -> torch.Tensor:
    """What the sampler of this number makes of the logits; one that asks for more gets one row at a time."""
    if not supported_arguments(sampler, "__call__", prompt_length=0, memory={}):
        return sampler(logits, tokens)
    rows = []
    for row, state in enumerate(states):
        this_row, memory = slice(row, row + 1), state.memories.setdefault(number, {})
        more = supported_arguments(sampler, "__call__", prompt_length=state.prompt_length, memory=memory)
        rows.append(sampler(logits[this_row], tokens[this_row], **more))
    return torch.cat(rows)


def _check_logits(sampler: Sampler, result: Any, logits: torch.Tensor) -> torch.Tensor:
    """What a sampler made of `logits`, if one id a row can be drawn from it."""
    if not isinstance(result, torch.Tensor):
        raise PluginError(f"{label(sampler)} must return logits, not {type(result).__name__}")
    if result.shape != logits.shape or not result.is_floating_point() or result.device != logits.device:
        raise PluginError(
            f"{label(sampler)} returned {list(result.shape)} {result.dtype} on {result.device}, where it was given "
            f"logits {list(logits.shape)} {logits.dtype} on {logits.device}"
        )
    if not bool(result.amax(dim=-1).isfinite().all()):  # NaN among them makes it NaN
        raise PluginError(f"{label(sampler)} left no token to draw, or NaN or +inf among the logits")
    return result
