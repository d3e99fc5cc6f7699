"""Scores a text given as a stream of ids, with one batch of windows in memory."""

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


def _windows(tokens: int, context: int, stride: int, scored: int) -> list[EvaluationWindow]:
    """The windows over `tokens` ids. The first `scored` ids are not targets."""
    if tokens <= scored:
        return []
    first, *others = evaluation_windows(tokens, context, stride)
    return [replace(first, counted=first.end - scored), *others]
