"""A text in blocks gets the same scores as the whole text, with only a part of it in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small_config import small_config

from pipeline.commands.stream import score_stream
from pipeline.data.batches import evaluation_windows
from pipeline.data.masked import MaskedIds
from pipeline.data.tokens import Ids
from pipeline.model.architecture import LanguageModel
from pipeline.model.scoring import Scores, score

CONTEXT, VOCAB = 8, 50


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return small_config(vocab_size=VOCAB, context_length=CONTEXT, n_layers=1, emb_dim=16).make().eval()


def text(tokens: int) -> Ids:
    return np.random.default_rng(tokens).integers(VOCAB, size=tokens).astype(np.uint16)


def joined(scores: list[Scores]) -> tuple[list[int], list[float]]:
    return [int(t) for each in scores for t in each.targets], [float(n) for each in scores for n in each.nats]


@pytest.mark.parametrize("stride", [1, 3, CONTEXT])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("tokens", [1, 2, CONTEXT, CONTEXT + 1, CONTEXT + 2, 3 * CONTEXT + 1, 61])
def test_the_scores_are_those_of_the_whole_text(
    model: LanguageModel, tokens: int, batch_size: int, stride: int
) -> None:
    whole = text(tokens)
    windows = evaluation_windows(tokens, CONTEXT, stride)
    targets, nats = joined(list(score(model, MaskedIds(whole), windows, 7)))
    assert targets == whole[1:].tolist()
    for size in (1, 5, 100):
        blocks = [whole[start : start + size] for start in range(0, tokens, size)]
        found = joined(list(score_stream(model, blocks, stride, batch_size)))
        assert found == (targets, pytest.approx(nats, rel=1e-5))


def test_no_more_is_read_than_a_batch_needs(model: LanguageModel) -> None:
    read = 0

    def blocks() -> Iterator[Ids]:
        nonlocal read
        while True:  # an endless text
            read += CONTEXT
            yield text(CONTEXT)

    scores = score_stream(model, blocks(), CONTEXT, 2)
    for batch in range(1, 6):
        assert len(next(scores).targets) == 2 * CONTEXT
        assert read <= 2 * CONTEXT * batch + CONTEXT
