"""Scores a text given as a stream of ids, or conversations, with one batch of windows in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from pipeline.data.batches import EvaluationWindow, evaluation_windows
from pipeline.data.joined import Ids
from pipeline.data.masked import MaskedIds
from pipeline.model.architecture import LanguageModel
from pipeline.model.scoring import Scores, score


def score_stream(model: LanguageModel, blocks: Iterable[Ids], stride: int, batch_size: int) -> Iterator[Scores]:
    """Scores every id but the first, in order. Same results as `score` with `evaluation_windows` of the whole text.

    Args:
        model: The model. Windows have its context length.
        blocks: The ids of the text, in blocks of any length.
        stride: The distance between the starts of windows, in tokens.
        batch_size: The number of windows computed at once; does not change the results.
    """
    context = model.architecture.shape.context_length
    span = (batch_size - 1) * stride + context + 1  # the number of ids in a batch of full windows
    held, scored = np.zeros(0, dtype=np.int64), 1
    for block in blocks:
        held = np.concatenate([held, block.astype(np.int64)])
        while len(held) >= span:
            yield from score(model, MaskedIds(held), _windows(span, context, stride, scored), batch_size)
            held, scored = held[batch_size * stride :], span - batch_size * stride
    yield from score(model, MaskedIds(held), _windows(len(held), context, stride, scored), batch_size)


def score_conversations(
    model: LanguageModel, conversations: Iterable[MaskedIds], stride: int, batch_size: int
) -> Iterator[tuple[Ids, Scores]]:
    """Scores the learnt tokens of conversations, of which none sees another.

    Yields:
        The ids of one or more conversations, and the scores of those that are learnt, with their places in them.
    """
    context = model.architecture.shape.context_length
    held, windows, size = list[MaskedIds](), list[EvaluationWindow](), 0

    def scored() -> Iterator[tuple[Ids, Scores]]:
        ids = np.concatenate([each.ids for each in held])
        learn = np.concatenate([each.learnt(0, len(each)).astype(np.uint8) for each in held])
        parts = list(score(model, MaskedIds(ids, learn), windows, batch_size))
        names = ("targets", "nats", "correct", "places")
        yield ids, Scores(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    for each in conversations:
        for window in evaluation_windows(len(each), context, stride):
            windows.append(replace(window, start=window.start + size, end=window.end + size))
        held.append(each)
        size += len(each)
        if len(windows) >= batch_size:
            yield from scored()
            held, windows, size = [], [], 0
    if windows:
        yield from scored()


def _windows(tokens: int, context: int, stride: int, scored: int) -> list[EvaluationWindow]:
    """The windows over `tokens` ids. The first `scored` ids are not targets."""
    if tokens <= scored:
        return []
    first, *others = evaluation_windows(tokens, context, stride)
    return [replace(first, counted=first.end - scored), *others]
