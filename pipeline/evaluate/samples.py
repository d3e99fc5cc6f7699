"""What a model writes after each prompt, drawn in several ways side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.model.checkpoint import Checkpoint
from pipeline.model.device import device_of
from pipeline.model.generate import generate_batch
from pipeline.plugin.components import Sampler

if TYPE_CHECKING:
    from pipeline.params.params import GenerationParams


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote.

    Attributes:
        prompt: What it was given.
        continuation: What it added.
        drawn: How its tokens were drawn, in words.
    """

    prompt: str
    continuation: str
    drawn: str


def draw_samples(
    checkpoint: Checkpoint, params: GenerationParams, samplers: Sequence[Sampler]
) -> list[list[Sample]]:
    """For each prompt what the samplers give, what the model itself does without any, and its likeliest text.

    The prompt number n is drawn with the seed `params.seed` + n, whatever the others are.
    """
    if not params.prompts:
        return []
    device, tokenizer = device_of(checkpoint.model), checkpoint.tokenizer
    starts = [
        [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text] for prompt in params.prompts
    ]

    def drawn(how: str, samplers: Sequence[Sampler], random: bool = True) -> list[Sample]:
        seeds = range(params.seed, params.seed + len(starts))
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds] if random else None
        texts = generate_batch(
            checkpoint.model, starts, params.max_new_tokens, samplers, generators, tokenizer.end_of_text
        )
        return [
            Sample(prompt, tokenizer.decode(text), how) for prompt, text in zip(params.prompts, texts, strict=True)
        ]

    ways = [drawn("the plain distribution", []), drawn("the likeliest token each time", [], random=False)]
    if samplers:
        ways.insert(0, drawn(", ".join(sampler.name for sampler in samplers), samplers))
    return [list(group) for group in zip(*ways, strict=True)]
