"""Packs: whole documents share windows, long ones are cut after what is learnt, and each target comes once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import ClassVar

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import DataError, PluginError
from pipeline.data.batches import TrainingWindows
from pipeline.data.index import IndexEntry
from pipeline.data.masked import MaskedIds
from pipeline.data.packing import packed_index, packed_windows
from pipeline.plugin import BatchSampler, TokenIndex
from pipeline.plugin.components import IGNORED
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["batch_samplers"])
END = 99


def text(*documents: str) -> tuple[MaskedIds, list[IndexEntry]]:
    """Documents of learnt (x) and read (.) tokens; the last one of each is its end."""
    learn = np.array([letter == "x" for letter in "".join(documents)], np.uint8)
    ends = list(accumulate(map(len, documents)))
    ids = np.arange(len(learn), dtype=np.uint16) % END
    ids[np.array(ends) - 1] = END
    entries = [
        IndexEntry(f"{'ab'[number % 3 == 2]}/{number}", end - len(document), len(document), 0)
        for number, (end, document) in enumerate(zip(ends, documents, strict=True))
    ]
    return MaskedIds(ids, learn, document_end=END), entries


def packs(context_length: int, *documents: str) -> list[str]:
    """The tokens of each pack."""
    ids, entries = text(*documents)
    letters = "".join(documents)
    return [letters[each.start : each.end] for each in packed_windows(ids, entries, context_length)]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (["..xx", "..xx", ".x", "..xxx"], ["..xx..xx.x", "..xxx"]),
        (["..xx", "...xxxx", "xxx"], ["..xx", "...xxxxxxx"]),
        # cut after a learnt part; the rest is packed with what follows
        (["..xx", "..xxxx..xx..x", ".x"], ["..xx", "..xxxx..xx", "..x.x"]),
        # what is only read gives way to what is learnt, which has as much before it as fits
        (["............xx"], ["........xx"]),
        (["xx............xx.......xx."], ["xx", "........xx", ".......xx"]),
        # a learnt part that does not fit is cut every 9 tokens
        ([".." + 20 * "x"], ["..xxxxxxxx", "xxxxxxxxxx", "xxxx"]),
        (["........" + 12 * "x"], ["....xxxxxx", "xxxxxxx"]),
        # nothing to learn
        (["x", "............", ".x"], [".x"]),
        ([12 * "x", "x"], [10 * "x", "xxxx"]),
        ([10 * "x", "x", 10 * "x"], [10 * "x", 10 * "x"]),
    ],
)  # fmt: skip
def test_documents_are_packed_and_long_ones_cut_after_what_is_learnt(
    documents: list[str], expected: list[str]
) -> None:
    assert packs(9, *documents) == expected


DOCUMENTS = st.lists(st.text("x.", min_size=1, max_size=40), min_size=1, max_size=20)


@given(documents=DOCUMENTS, context_length=st.integers(1, 12), masked=st.booleans())
def test_each_learnt_token_is_one_target_and_no_document_is_cut_that_fits(
    documents: list[str], context_length: int, masked: bool
) -> None:
    ids, entries = text(*documents)
    ids = ids if masked else replace(ids, learn=None)
    windows = packed_windows(ids, entries, context_length)
    assert all(1 < each.end - each.start <= context_length + 1 for each in windows)
    assert all(one.start < other.start for one, other in pairwise(windows))
    targets = Counter(
        each.start + 1 + place
        for each in windows
        for place in np.flatnonzero(ids.learnt(each.start + 1, each.end)).tolist()
    )
    firsts = {entry.start for entry in entries}
    learnt = {place for place in range(len(ids)) if not masked or "".join(documents)[place] == "x"}
    assert targets == Counter(learnt - firsts)
    for entry in entries:
        if 1 < entry.tokens <= context_length + 1:
            assert sum(each.start <= entry.start and entry.end <= each.end for each in windows) == 1


def index_of(sampler: BatchSampler, *documents: str, context_length: int = 9) -> TrainingWindows:
    ids, entries = text(*documents)
    index, _ = packed_index(ids, context_length, sampler, entries)
    return TrainingWindows(ids, index, sampler, 1)


def chosen(name: str) -> BatchSampler:
    options = {"weighted": {"shares": {"a": 1, "b": 1}}}
    sampler: BatchSampler = REGISTRY.build("batch_samplers", name, options, "")
    return sampler


def test_a_batch_ends_where_its_pack_ends_and_no_document_begins_with_a_target() -> None:
    inputs, targets = index_of(chosen("sequential"), "..xx", ".x", "xxx", "xx").batch([0, 9])
    assert inputs.tolist() == [[0, 1, 2, END, 4, END, 6, 7, END], [9] + 8 * [END]]
    ignored = IGNORED
    assert targets.tolist() == [
        [ignored, 2, END, ignored, END, ignored, 7, END, ignored],
        [END] + 8 * [ignored],
    ]


@pytest.mark.parametrize("name", ["sequential", "shuffled"])
def test_an_epoch_reads_each_pack_once(name: str) -> None:
    data = index_of(chosen(name), *(["..xx", ".xxxx", ".x"] * 10))
    windows = [each.start for each in packed_windows(*text(*(["..xx", ".xxxx", ".x"] * 10)), 9)]
    assert data.per_epoch == len(windows) > 5
    epochs = [data.offsets(number * len(windows), (number + 1) * len(windows)) for number in range(3)]
    assert all(sorted(epoch) == windows for epoch in epochs)
    assert (epochs[0] == windows) == (name == "sequential")


def test_documents_of_different_sources_are_not_packed_together() -> None:
    data = index_of(chosen("weighted"), "..xx", ".x", ".xx", "..x", "...x")
    starts = {name: list(source.starts) for name, source in data.index.sources.items()}
    assert starts == {"a": [0, 9], "b": [6]}
    assert list(data.index.text.starts) == [0, 6, 9]
    assert {data.index.window_end(start) for start in (0, 6, 9)} == {6, 9, 16}
    assert Counter(data.offsets(0, 8)) == {0: 2, 9: 2, 6: 4}


def test_a_source_without_anything_to_learn_is_an_error() -> None:
    with pytest.raises(DataError, match=r"train\.batch_sampler\.weighted: 'b'"):
        index_of(chosen("weighted"), "..xx", ".x", "................", "..x")


class Every(BatchSampler):
    """Begins anywhere."""

    name: ClassVar[str] = "every"

    def offset(self, sample: int, seed: int, index: TokenIndex) -> int:
        return sample


def test_a_sampler_that_begins_inside_a_pack_is_named() -> None:
    data = index_of(Every(), "..xx", ".x", "..xxxxx")
    with pytest.raises(PluginError, match=r"'every'.*offset 1 for sample 1.*pack_documents"):
        data.offsets(0, 2)


@pytest.mark.parametrize("changes", [{}, {"learn": None}, {"document_end": None}], ids=str)
def test_a_part_says_the_same_of_a_token_as_the_whole(changes: dict[str, None]) -> None:
    ids = replace(text("..xx", "x", ".xx", "xx")[0], **changes)
    for whole, of in ((ids.learnt(0, 10), ids.learnt), (ids.targets(0, 10), ids.targets)):
        for start in range(10):
            for end in range(start, 13):
                assert of(start, end).tolist() == whole[start:end].tolist()
