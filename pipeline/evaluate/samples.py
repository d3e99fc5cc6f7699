"""Sample texts: continuations of each prompt, sampled in several ways; and answers to held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.core.console import Progress
from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.conversations import Speakers, Turn, held_out_questions
from pipeline.evaluate.text_model import answers
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.device import device_of
from pipeline.model.generate import generate_batch
from pipeline.plugin.components import Answer, Sampler

if TYPE_CHECKING:
    from pipeline.params.params import GenerationParams

_QUESTIONS = 6


@dataclass(frozen=True)
class Sample:
    """A generated text.

    Attributes:
        prompt: The prompt.
        continuation: The generated text.
        drawn: The sampling method, for people.
        end: The text of the end-of-text token if the model ended with one (it is not in `continuation`), else "".
    """

    prompt: str
    continuation: str
    drawn: str
    end: str = ""


def draw_samples(
    checkpoint: Checkpoint, params: GenerationParams, samplers: Sequence[Sampler]
) -> list[list[Sample]]:
    """For each prompt, a sample with the samplers, one without any sampler, and the greedy continuation.

    Prompt number n is sampled with the seed `params.seed` + n, independently of the other prompts.
    """
    if not params.prompts:
        return []
    device, tokenizer = device_of(checkpoint.model), checkpoint.tokenizer
    end = tokenizer.decode([tokenizer.end_of_text])
    starts = [
        [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text] for prompt in params.prompts
    ]

    ways: list[tuple[str, Sequence[Sampler], bool]] = [
        ("without samplers", [], True),
        ("greedy (the most likely token)", [], False),
    ]
    if samplers:
        ways.insert(0, (", ".join(sampler.name for sampler in samplers), samplers, True))
    count = len(ways) * len(starts)

    def drawn(how: str, samplers: Sequence[Sampler], random: bool, progress: Progress) -> list[Sample]:
        def show(row: int, token: int) -> bool:
            progress.update(0, work=1)
            return False

        seeds = range(params.seed, params.seed + len(starts))
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds] if random else None
        texts = generate_batch(
            checkpoint.model, starts, params.max_new_tokens, samplers, generators, tokenizer.end_of_text, show
        )
        progress.update(len(starts), work=0)
        return [
            Sample(prompt, tokenizer.decode(text), how, end if len(text) < params.max_new_tokens else "")
            for prompt, text in zip(params.prompts, texts, strict=True)
        ]

    with Progress(
        "generating", "sample", count, work_unit="token", work_total=count * params.max_new_tokens
    ) as progress:
        groups = [drawn(*way, progress) for way in ways]
    return [list(group) for group in zip(*groups, strict=True)]


@dataclass(frozen=True)
class AnsweredQuestion:
    """A held-out question and the model's most likely answer.

    Attributes:
        name: The name of the conversation.
        turns: What is said before the answer.
        right: The answer in the conversation.
        answer: That of the model.
    """

    name: str
    turns: list[Turn]
    right: str
    answer: Answer


def answer_questions(
    checkpoint: Checkpoint, splits: TokenFolder, side: str, params: GenerationParams, batch_size: int
) -> list[AnsweredQuestion]:
    """Answers some questions of a held-out split, evenly spaced; none without conversations."""
    if not (checkpoint.tokenizer.chat_template and splits.has_mask(side)):
        return []
    questions = list(held_out_questions(splits, side, _QUESTIONS))
    given = answers(checkpoint, batch_size, [each.prompt for each in questions], params.max_new_tokens)
    speakers = Speakers(checkpoint.tokenizer)
    return [
        AnsweredQuestion(each.name, speakers.turns(np.array(each.prompt)), each.answer.strip(), answer)
        for each, answer in zip(questions, given, strict=True)
    ]
