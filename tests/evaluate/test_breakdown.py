"""The breakdown: equal to sums over single tokens for any batch size; and its tables."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from small_config import small_config
from torch import nn

from pipeline.core.errors import DataError
from pipeline.data.batches import evaluation_windows
from pipeline.data.masked import MaskedIds
from pipeline.evaluate.breakdown import (
    MOST_BLOCKS,
    Breakdown,
    BreakdownAccumulator,
    UnitScore,
)
from pipeline.evaluate.places import Places, target_sums
from pipeline.evaluate.tables import TaskItem, read_items, read_units, write_tables
from pipeline.model.architecture import LanguageModel
from pipeline.model.scoring import Scores, score

CONTEXT, VOCAB = 8, 50
IDS = np.random.default_rng(0).integers(VOCAB, size=101, dtype=np.uint16)
LENGTHS = np.arange(VOCAB) % 4  # every fourth id is a special token
COUNTS = np.array([0, 1, 9, 10, 99, 100, *[5] * (VOCAB - 6)])
PLAIN = MaskedIds(IDS)
LEARN = (np.arange(101) // 7 % 3 == 1).astype(np.uint8)  # windows with some learnt tokens, with all, and with none
MASKED = MaskedIds(IDS, LEARN)
STARTS = [0, 1, 30, 31, 77]
DOCUMENTS = [(f"document {number}", start) for number, start in enumerate(STARTS)]


def make() -> LanguageModel:
    torch.manual_seed(0)
    model = small_config(vocab_size=VOCAB, context_length=CONTEXT).make()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def breakdown(stride: int, batch_size: int, ids: MaskedIds = PLAIN) -> tuple[Breakdown, Scores]:
    """The breakdown of `IDS`, and the scores of all of its targets."""
    accumulator = BreakdownAccumulator(ids, DOCUMENTS, COUNTS, LENGTHS, CONTEXT)
    windows = evaluation_windows(len(IDS), CONTEXT, stride)
    every = list(score(make().double(), ids, windows, batch_size))
    for number, scores in enumerate(every):
        batch = windows[number * batch_size : (number + 1) * batch_size]
        accumulator.add(scores, Places.of(ids, batch).positions)
    names = [field.name for field in fields(Scores)]
    joined = {name: np.concatenate([getattr(part, name) for part in every]) for name in names}
    return accumulator.breakdown(), Scores(**joined)


@pytest.mark.parametrize("stride", [CONTEXT, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("ids", [PLAIN, MASKED], ids=["plain", "masked"])
def test_each_row_is_the_sum_of_its_tokens(stride: int, batch_size: int, ids: MaskedIds) -> None:
    found, scores = breakdown(stride, batch_size, ids)
    learnt = ids.learnt(1, len(IDS))
    known = expected_positions(stride)[learnt]
    places = np.arange(1, len(IDS))[learnt]
    text = LENGTHS[scores.targets] > 0

    def unit(name: str, selected: np.ndarray) -> UnitScore:
        size = int(LENGTHS[scores.targets[selected]].sum())
        nats, text_nats = float(scores.nats[selected].sum()), float(scores.nats[selected & text].sum())
        return UnitScore(name, int(selected.sum()), nats, size, text_nats, int(scores.correct[selected].sum()))

    ends = [(name, start, end) for (name, start), end in zip(DOCUMENTS, [*STARTS[1:], len(IDS)], strict=True)][1:]
    expected = [
        unit(name, (places >= start) & (places < end))
        for name, start, end in ends  # without the first one, whose only token is no target
        if learnt[start - 1 : end - 1].any()
    ]
    assert [each.name for each in found.documents] == [each.name for each in expected]
    for mine, theirs in zip(found.documents, expected, strict=True):
        assert mine[1:] == pytest.approx(theirs[1:], rel=1e-12)
    for row in found.positions:
        selected = known == row.position
        assert (row.tokens, row.nats) == (selected.sum(), pytest.approx(scores.nats[selected].mean(), rel=1e-12))
    assert sum(row.tokens for row in found.positions) == learnt.sum() == len(scores.nats)
    for low, high in [(0, 1), (1, 10), (10, 100), (100, 1000)]:
        selected = (COUNTS[scores.targets] >= low) & (COUNTS[scores.targets] < high)
        rows = [row for row in found.frequencies if row.lowest == low]
        assert len(rows) == selected.any()
        for row in rows:
            assert row == (low, selected.sum(), pytest.approx(scores.nats[selected].mean(), rel=1e-12))


def expected_positions(stride: int) -> np.ndarray:
    windows = evaluation_windows(len(IDS), CONTEXT, stride)
    each = [np.arange(window.end - window.counted, window.end) - 1 - window.start for window in windows]
    return np.concatenate(each)


@pytest.mark.parametrize("stride", [CONTEXT, 7, 3, 1])
def test_a_targets_position_is_the_number_of_its_last_known_token(stride: int) -> None:
    windows = evaluation_windows(len(IDS), CONTEXT, stride)
    assert Places.of(PLAIN, windows).positions.tolist() == expected_positions(stride).tolist()
    assert Places.of(PLAIN, windows).offsets.tolist() == list(range(1, len(IDS)))
    masked = Places.of(MASKED, windows)
    assert masked.offsets.tolist() == (1 + np.flatnonzero(LEARN[1:])).tolist()
    assert masked.positions.tolist() == expected_positions(stride)[LEARN[1:] == 1].tolist()


def test_blocks_are_stretches_of_equally_many_bytes_none_shorter_than_a_window() -> None:
    found, scores = breakdown(CONTEXT, 3)
    assert len(found.blocks) == 8  # the power of two up to 100 targets / 8 tokens
    assert sum(each.nats for each in found.blocks) == pytest.approx(scores.nats.sum(), rel=1e-12)
    sizes = [each.bytes for each in found.blocks]
    assert max(sizes) - min(sizes) <= 2 * LENGTHS.max()
    long = BreakdownAccumulator(MaskedIds(np.ones(5000, np.uint16)), DOCUMENTS[:1], COUNTS, LENGTHS, CONTEXT)
    scores = Scores(np.ones(4999, np.int64), np.ones(4999), np.ones(4999, bool), 1 + np.arange(4999))
    long.add(scores, np.arange(4999) % CONTEXT)
    assert {each.tokens for each in long.breakdown().blocks} == {39, 40}
    assert len(long.breakdown().blocks) == MOST_BLOCKS


def test_blocks_of_masked_text_have_equally_many_learnt_bytes() -> None:
    found, scores = breakdown(CONTEXT, 3, MASKED)
    assert len(found.blocks) == 4  # 34 targets / 8 tokens
    assert sum(each.tokens for each in found.blocks) == len(scores.nats)
    sizes = [each.bytes for each in found.blocks]
    assert max(sizes) - min(sizes) <= 2 * LENGTHS.max()


def test_targets_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluate.places._AT_ONCE", 7)
    assert target_sums(PLAIN, LENGTHS) == (100, LENGTHS[IDS[1:]].sum())
    assert target_sums(MASKED, LENGTHS) == (LEARN[1:].sum(), LENGTHS[IDS[1:]][LEARN[1:] == 1].sum())
    with pytest.raises(DataError, match="token id 60000"):
        target_sums(MaskedIds(np.append(IDS, 60_000)), LENGTHS)


def test_the_tables_are_read_back_to_the_bit(tmp_path: Path) -> None:
    found, _ = breakdown(CONTEXT, 3)
    odd = [each._replace(name=f"a\tb\n\"{each.name}'é") for each in found.documents]
    items = [TaskItem("task", "number", f'a\tb"é{number}', 0.5, "1\t\r\n\\") for number in range(2)]
    write_tables({"val": found._replace(documents=odd), "test": found}, items, {}, tmp_path)
    assert read_units((tmp_path / "documents.tsv").read_text()) == {"val": odd, "test": found.documents}
    assert read_units((tmp_path / "blocks.tsv").read_text())["val"] == found.blocks
    assert read_items((tmp_path / "tasks.tsv").read_text()) == [each._replace(text=r"1\t\r\n\\") for each in items]
    for read in (read_units, read_items):
        with pytest.raises(ValueError, match="columns"):
            read("side\tdocument\n")
