"""The text interface to a checkpoint for task metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipeline.core.console import Progress
from pipeline.data.batches import EvaluationWindow, evaluation_windows
from pipeline.data.masked import MaskedIds
from pipeline.data.parts import prompt_ids, turn_ends
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.conversations import held_out_questions
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.device import device_of
from pipeline.model.generate import generate, generate_batch
from pipeline.model.scoring import score
from pipeline.plugin.components import Answer, Message, Prompt, Question, TextModel


def text_model(
    checkpoint: Checkpoint,
    splits: TokenFolder,
    ends: bool,
    batch_size: int,
    folder: Path,
    record: Callable[..., None] = lambda *values: None,
) -> TextModel:
    """Wraps a checkpoint as a `TextModel`.

    Args:
        checkpoint: The model and its tokenizer.
        splits: The held-out text.
        ends: Whether documents ended with the end-of-text token in training. If so, it is put before each text.
        batch_size: The number of windows, or of answers, computed at once.
        folder: The folder of the tasks' files.
        record: Writes the value of a single item; see `TextModel`.
    """
    texts = _Texts(checkpoint, splits, ends, batch_size)
    return TextModel(
        score=texts.score,
        choose=texts.choose,
        generate=texts.generate,
        folder=folder,
        record=record,
        questions=texts.questions,
        chat_prompt=texts.chat_prompt,
        answers=partial(answers, checkpoint, batch_size),
        answer_scores=texts.answer_scores,
    )


@dataclass(frozen=True)
class _Texts:
    """The methods of a `TextModel`; see there."""

    checkpoint: Checkpoint
    splits: TokenFolder
    ends: bool
    batch_size: int

    def score(self, text: str, prompt: str = "") -> float:
        return self._nats([(self._before(prompt), self._encode(text))])[0]

    def choose(self, prompt: str, options: Sequence[str]) -> int:
        before = self._before(prompt)
        found = self._nats([(before, self._encode(option)) for option in options])
        return found.index(min(found))

    def generate(self, prompt: str, max_new_tokens: int = 50, temperature: float = 0.0) -> str:
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        device, start = device_of(model), self._encode(prompt) or [tokenizer.end_of_text]
        generator = torch.Generator(device).manual_seed(0) if temperature > 0 else None
        samplers = [lambda logits, tokens: logits / max(temperature, 1e-6)] if temperature > 0 else []
        drawn = generate(
            model, torch.tensor([start], device=device), max_new_tokens, samplers, generator, tokenizer.end_of_text
        )
        return prompt + tokenizer.decode([int(token) for token in drawn])

    def questions(self, split: str, limit: int) -> list[Question]:
        return list(held_out_questions(self.splits, split, limit))

    def chat_prompt(self, messages: Sequence[Message]) -> Prompt:
        return prompt_ids(messages, self.checkpoint.tokenizer)

    def answer_scores(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[tuple[float, int]]:
        end = _end_of_turn(self.checkpoint.tokenizer)
        pairs = [(prompt, [*self._encode(text), end]) for prompt, text in zip(prompts, texts, strict=True)]
        found = self._nats(pairs)
        return [(nats, len(answer)) for nats, (_, answer) in zip(found, pairs, strict=True)]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.checkpoint.tokenizer.encode(text).tolist()
        return ids

    def _before(self, prompt: str) -> list[int]:
        """The ids of a prompt of plain text."""
        ids = self._encode(prompt)
        return [self.checkpoint.tokenizer.end_of_text, *ids] if self.ends or not ids else ids

    def _nats(self, pairs: Sequence[tuple[Prompt, Sequence[int]]]) -> list[float]:
        """The nats of the second ids after the first ones, for each pair. What is longer than the context is scored
        in overlapping windows."""
        context = self.checkpoint.model.architecture.shape.context_length
        ids: list[int] = []
        windows: list[EvaluationWindow] = []
        owners: list[int] = []
        by_length = sorted(range(len(pairs)), key=lambda number: sum(map(len, pairs[number])))
        for number in by_length:  # so that a batch has little padding
            before, after = pairs[number]
            for window in evaluation_windows(len(before) + len(after), context, max(1, context // 2)):
                counted = min(window.counted, window.end - len(before))
                if counted > 0:
                    windows.append(EvaluationWindow(len(ids) + window.start, len(ids) + window.end, counted))
                    owners += [number] * counted
            ids += [*before, *after]
        text = MaskedIds(np.array(ids, dtype=np.uint32))
        found = [each.nats for each in score(self.checkpoint.model, text, windows, self.batch_size)]
        totals = np.bincount(np.array(owners, np.int64), np.concatenate([np.zeros(0), *found]), len(pairs))
        return [float(total) for total in totals]


def answers(
    checkpoint: Checkpoint, batch_size: int, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[Answer]:
    """The most likely answer to each prompt, computed `batch_size` at a time."""
    tokenizer = checkpoint.tokenizer
    end, stops = _end_of_turn(tokenizer), turn_ends(tokenizer)
    found: dict[int, Answer] = {}
    by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    with Progress("answering", "question", len(prompts)) as progress:
        for first in range(0, len(prompts), batch_size):
            batch = by_length[first : first + batch_size]  # of similar lengths
            drawn = generate_batch(
                checkpoint.model,
                [prompts[number] for number in batch],
                max_new_tokens,
                should_stop=lambda row, token: token in stops,
            )
            for number, ids in zip(batch, drawn, strict=True):
                stopped = bool(ids) and ids[-1] in stops
                text = tokenizer.decode(ids[:-1] if stopped else ids)
                found[number] = Answer(text, ended=stopped and ids[-1] == end)
            progress.update(len(batch))
    return [found[number] for number in range(len(prompts))]


def _end_of_turn(tokenizer: Tokenizer) -> int:
    """The id that ends a turn of the assistant; end-of-text if the template has none of its own."""
    return list(turn_ends(tokenizer))[-1]
