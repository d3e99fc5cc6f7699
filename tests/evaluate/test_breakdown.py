"""The breakdown: the same sums as adding token by token, whatever the batches; top 5, calibration, digests."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from small_config import small_config
from torch import nn

from pipeline.data.batches import evaluation_windows
from pipeline.data.tokens import IndexEntry
from pipeline.evaluate.breakdown import MOST_BLOCKS, Breakdown, BreakdownAccumulator, UnitScore, token_counts
from pipeline.evaluate.details import TokenDetails, highest_probability, in_top, score_in_detail
from pipeline.evaluate.tables import read_units, write_tables
from pipeline.model.architecture import LanguageModel
from pipeline.model.scoring import Scores, score, score_tokens
from pipeline.plugin.components import ModelOutput

CONTEXT, VOCAB = 8, 50
IDS = np.random.default_rng(0).integers(VOCAB, size=101, dtype=np.uint16)
LENGTHS = np.arange(VOCAB) % 4  # every fourth id is a special token
COUNTS = np.array([0, 1, 9, 10, 99, 100, *[5] * (VOCAB - 6)])
STARTS = [0, 1, 30, 31, 77]
DOCUMENTS = [
    IndexEntry(f"document {number}", start, end - start, 0)
    for number, (start, end) in enumerate(zip(STARTS, [*STARTS[1:], len(IDS)], strict=True))
]


def make() -> LanguageModel:
    torch.manual_seed(0)
    model = small_config(vocab_size=VOCAB, context_length=CONTEXT).make()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def made_details(count: int, **arrays: np.ndarray) -> TokenDetails:
    """Details of `count` targets, 0 where nothing is given."""
    zeros = {field.name: np.zeros(count, np.int64) for field in fields(TokenDetails)}
    return TokenDetails(**zeros | arrays)


def breakdown(stride: int, batch_size: int) -> tuple[Breakdown, Scores, TokenDetails]:
    """The breakdown of `IDS`, and the scores and details of all of its targets."""
    accumulator = BreakdownAccumulator(IDS, DOCUMENTS, COUNTS, LENGTHS, CONTEXT)
    windows = evaluation_windows(len(IDS), CONTEXT, stride)
    every = list(score_in_detail(make().double(), IDS, windows, batch_size))
    for scores, details in every:
        accumulator.add(scores, details)

    def joined(place: int, kind: type) -> dict[str, np.ndarray]:
        parts = [each[place] for each in every]
        return {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(kind)}

    return accumulator.breakdown(), Scores(**joined(0, Scores)), TokenDetails(**joined(1, TokenDetails))


@pytest.mark.parametrize("stride", [CONTEXT, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_each_row_is_the_sum_of_its_tokens(stride: int, batch_size: int) -> None:
    found, scores, details = breakdown(stride, batch_size)
    places = np.arange(1, len(IDS))
    text = LENGTHS[scores.targets] > 0

    def unit(name: str, own: np.ndarray) -> UnitScore:
        size = int(LENGTHS[scores.targets[own]].sum())
        nats, text_nats = float(scores.nats[own].sum()), float(scores.nats[own & text].sum())
        return UnitScore(name, int(own.sum()), nats, size, text_nats, int(scores.correct[own].sum()))

    expected = [
        unit(entry.name, (places >= entry.start) & (places < entry.start + entry.tokens))
        for entry in DOCUMENTS[1:]  # the first one's only token is no target
    ]
    assert [each.name for each in found.documents] == [each.name for each in expected]
    for mine, theirs in zip(found.documents, expected, strict=True):
        assert mine[1:] == pytest.approx(theirs[1:], rel=1e-12)
    for row in found.positions:
        own = details.positions == row.position
        assert (row.tokens, row.nats) == (own.sum(), pytest.approx(scores.nats[own].mean(), rel=1e-12))
    assert sum(row.tokens for row in found.positions) == len(IDS) - 1
    for row, (low, high) in zip(found.frequencies, [(0, 1), (1, 10), (10, 100), (100, 1000)], strict=True):
        own = (COUNTS[scores.targets] >= low) & (COUNTS[scores.targets] < high)
        assert row == (low, own.sum(), pytest.approx(scores.nats[own].mean(), rel=1e-12))


@pytest.mark.parametrize("stride", [CONTEXT, 3])
def test_a_targets_position_is_the_number_of_its_last_known_token(stride: int) -> None:
    _, _, details = breakdown(stride, 3)
    expected = [
        target - 1 - window.start
        for window in evaluation_windows(len(IDS), CONTEXT, stride)
        for target in range(window.end - window.counted, window.end)
    ]
    assert details.positions.tolist() == expected


def test_blocks_are_stretches_of_equally_many_bytes_none_shorter_than_a_window() -> None:
    found, scores, _ = breakdown(CONTEXT, 3)
    assert len(found.blocks) == 8  # the power of two up to 100 targets / 8 tokens
    assert sum(each.nats for each in found.blocks) == pytest.approx(scores.nats.sum(), rel=1e-12)
    sizes = [each.bytes for each in found.blocks]
    assert max(sizes) - min(sizes) <= 2 * LENGTHS.max()
    long = BreakdownAccumulator(np.ones(5000, np.uint16), DOCUMENTS[:1], COUNTS, LENGTHS, CONTEXT)
    long.add(Scores(np.ones(4999, np.int64), np.ones(4999), np.ones(4999, bool)), made_details(4999))
    assert {each.tokens for each in long.breakdown().blocks} == {39, 40}
    assert len(long.breakdown().blocks) == MOST_BLOCKS


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_observing_leaves_the_scores_as_they_are_to_the_bit(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("pipeline.model.scoring._LOGITS_AT_ONCE", rows * VOCAB)
    windows = evaluation_windows(len(IDS), CONTEXT, 3)
    plain = list(score(make(), IDS, windows, 4))
    observed = list(score_in_detail(make(), IDS, windows, 4))
    for one, (other, details) in zip(plain, observed, strict=True):
        assert np.array_equal(one.targets, other.targets)
        assert np.array_equal(one.nats, other.nats)
        assert np.array_equal(one.correct, other.correct)
        assert {len(getattr(details, field.name)) for field in fields(details)} == {len(one.targets)}


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_top5_and_confidence_are_those_of_the_sorted_probabilities(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("pipeline.model.scoring._LOGITS_AT_ONCE", rows * VOCAB)
    model, windows = make().double(), evaluation_windows(97, CONTEXT, CONTEXT)
    (scored,) = score_in_detail(model, IDS[:97], windows, len(windows))
    with torch.no_grad():
        inputs = torch.from_numpy(IDS[:96].astype(np.int64)).view(12, 8)
        probabilities = model.eval()(inputs).logits.softmax(dim=-1).flatten(0, 1)
    scores, details = scored
    expected = (probabilities.topk(5).indices == torch.from_numpy(scores.targets)[:, None]).any(dim=-1)
    assert details.top5.tolist() == expected.tolist()
    np.testing.assert_allclose(details.confidence, probabilities.amax(dim=-1).numpy(), rtol=1e-12)
    assert np.array_equal(scores.correct & details.top5, scores.correct)


def test_of_equally_likely_tokens_five_are_among_the_first_five() -> None:
    targets, logits = torch.arange(8), torch.zeros(8, 8)
    assert in_top(5, logits, targets).tolist() == [True] * 5 + [False] * 3
    assert highest_probability(logits).tolist() == [1 / 8] * 8
    _, correct = score_tokens(ModelOutput(torch.zeros(1, 8, 2), torch.zeros(8, 2), 8), targets[None])
    assert correct[0].tolist() == [True] + [False] * 7


def test_calibration_is_the_distance_of_confidence_from_what_came_true() -> None:
    def error(confidence: list[float], correct: list[bool]) -> float:
        count = len(correct)
        entry = IndexEntry("a", 0, count + 1, 0)
        accumulator = BreakdownAccumulator(np.zeros(count + 1, np.uint16), [entry], COUNTS, LENGTHS, CONTEXT)
        details = made_details(count, confidence=np.array(confidence))
        accumulator.add(Scores(np.ones(count, np.int64), np.ones(count), np.array(correct)), details)
        return accumulator.breakdown().numbers["calibration_error"]

    assert error([0.5] * 4, [True, False, True, False]) == 0
    assert error([1.0] * 4, [True, False, True, False]) == 0.5
    # Two bins: 0.9 where 1 of 2 is right, 0.2 where none of 2 is.
    assert error([0.9, 0.9, 0.2, 0.2], [True, False, False, False]) == pytest.approx((2 * 0.4 + 2 * 0.2) / 4)
    # A bin's error is that of its means: too high and too low cancel.
    assert error([0.61, 0.65], [True, False]) == pytest.approx(abs(1 - 1.26) / 2)


def test_counts_are_those_of_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = token_counts(IDS, VOCAB)
    monkeypatch.setattr("pipeline.evaluate.breakdown._AT_ONCE", 7)
    assert token_counts(IDS, VOCAB).tolist() == whole.tolist() == np.bincount(IDS, minlength=VOCAB).tolist()


def test_the_tables_are_read_back_to_the_bit(tmp_path: Path) -> None:
    found, _, _ = breakdown(CONTEXT, 3)
    odd = [each._replace(name=f"a\tb\n\"{each.name}'é") for each in found.documents]
    write_tables({"val": found._replace(documents=odd), "test": found}, {}, tmp_path)
    assert read_units((tmp_path / "documents.tsv").read_text()) == {"val": odd, "test": found.documents}
    assert read_units((tmp_path / "blocks.tsv").read_text())["val"] == found.blocks
    with pytest.raises(ValueError, match="columns"):
        read_units("side\tdocument\n")
