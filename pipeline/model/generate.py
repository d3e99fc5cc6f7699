"""Generation: one token at a time, with the model's KV cache; samplers change the logits before each draw."""

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
"""From this number of parameters on, the weights exceed the CPU caches, and memory bandwidth limits generation."""


def fastest_dtype(model: LanguageModel) -> torch.dtype:
    """The fastest dtype of the weights for generation: bfloat16 for large models (each token reads all weights) on
    devices that support it, otherwise float32."""
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

    When the context is full, generation continues from its second half: cached keys include their positions and
    cannot be shifted.

    Args:
        model: The model, in eval mode.
        tokens: Ids [B, T], T ≥ 1; if they exceed the context, the last ones are used.
        max_new_tokens: The maximum number of ids to draw.
        samplers: The samplers, applied to the logits in order.
        generator: The random generator of the draws; None takes the most likely token.
        end: The end-of-text id: generation stops when every row draws it.

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
    """Continues several prompts in one batch, each as `generate` would.

    All rows start at position 0, without padding: shorter prompts are continued while longer ones are still read.

    Args:
        model: The model, in eval mode.
        prompts: The ids of each prompt, at least one each.
        max_new_tokens: The maximum number of ids to draw for each prompt.
        samplers: The samplers, applied to the logits in order.
        generators: One random generator per prompt; None takes the most likely tokens.
        end: The end-of-text id, which ends a continuation and is not part of it.
        should_stop: Called with (index of the prompt, drawn id); True ends that prompt's continuation.

    Returns:
        The continuation of each prompt.
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
        if not unfinished:  # the unfinished rows still read their prompts
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
    """Decodes texts that grow or are truncated at the end: computes the logits of the next token.

    With a cache, each token is computed once; without one, every call computes the visible context again.

    Attributes:
        tokens: Ids [B, T]; the last ones may not be computed yet.
        first_visible: The index of the first token that the model still sees, where the cache starts.
    """

    def __init__(self, model: LanguageModel, tokens: torch.Tensor) -> None:
        self._model, self._context, self.tokens = model, model.architecture.shape.context_length, tokens
        self._reset_cache()

    def _reset_cache(self) -> None:
        """Empties the cache: the next call computes as much of the text's end as fits into the context."""
        self._cache = self._new_cache()
        self.first_visible = self._computed = 0

    def _new_cache(self) -> Any:
        """An empty cache; None if the model has no `make_cache`."""
        make = getattr(self._model, "make_cache", None)
        if make is None:
            return None
        with calling(self._model.architecture.component):
            return make(len(self.tokens))

    def __len__(self) -> int:
        return self.tokens.shape[1]

    def add(self, new: torch.Tensor) -> None:
        """Appends ids [B, n]."""
        self.tokens = torch.cat([self.tokens, new], dim=1)

    def replace(self, ids: Sequence[int]) -> None:
        """Replaces the text, which must be a single one, by `ids`; the beginning that both share is not computed
        again."""
        before = self.tokens[0].tolist()
        shared = next((n for n, pair in enumerate(zip(before, ids, strict=False)) if pair[0] != pair[1]), None)
        self.truncate(min(len(before), len(ids)) if shared is None else shared)
        self.add(torch.tensor([ids[len(self) :]], dtype=torch.long, device=self.tokens.device))

    def truncate(self, length: int) -> None:
        """Truncates the texts to the first `length` tokens; the last one is computed again for its logits.

        If less than half a context remains in the cache and earlier tokens were dropped, the cache is emptied, so
        that the model sees more of the text.
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
        """The logits of the next token [B, V], in float32 (or wider). Call it in inference mode.

        When the new tokens do not fit into the cache, it is emptied and the end of the texts is computed again:
        half a context, or all new tokens if they are more, but at most a full context.
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
    """The state of one sequence that samplers may use beside its tokens.

    Attributes:
        prompt_length: In tokens.
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
    """Applies the samplers to logits [B, V] in order and draws one id per row [B]. Without `states`, all tokens
    count as the prompt."""
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
    """The logits that a sampler returns. A sampler that takes `prompt_length` or `memory` gets one row at a
    time."""
    if not supported_arguments(sampler, "__call__", prompt_length=0, memory={}):
        return sampler(logits, tokens)
    rows = []
    for row, state in enumerate(states):
        this_row, memory = slice(row, row + 1), state.memories.setdefault(number, {})
        more = supported_arguments(sampler, "__call__", prompt_length=state.prompt_length, memory=memory)
        rows.append(sampler(logits[this_row], tokens[this_row], **more))
    return torch.cat(rows)


def _check_logits(sampler: Sampler, result: Any, logits: torch.Tensor) -> torch.Tensor:
    """The result of a sampler; raises PluginError if no id can be drawn from it."""
    if not isinstance(result, torch.Tensor):
        raise PluginError(f"{label(sampler)} must return logits, not {type(result).__name__}")
    if result.shape != logits.shape or not result.is_floating_point() or result.device != logits.device:
        raise PluginError(
            f"{label(sampler)} returned {list(result.shape)} {result.dtype} on {result.device} instead of "
            f"logits {list(logits.shape)} {logits.dtype} on {logits.device}"
        )
    if not bool(result.amax(dim=-1).isfinite().all()):  # NaN propagates through amax
        raise PluginError(f"{label(sampler)} left no token to draw, or returned NaN or +inf")
    return result
