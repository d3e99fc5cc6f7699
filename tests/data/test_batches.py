"""The order of the data: which windows are read, when, and that targets are the inputs moved on by one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import DataError, PluginError
from pipeline.data.batches import EvaluationWindow, TrainingWindows, evaluation_windows, token_index
from pipeline.data.index import IndexEntry
from pipeline.data.masked import MaskedIds
from pipeline.plugin import BatchSampler, IndexedDocument, TokenIndex
from pipeline.plugin.components import IGNORED
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["batch_samplers"])


def windows(
    tokens: int, context_length: int = 4, seed: int = 1, shift: bool = False, sampler: str = "shuffled"
) -> TrainingWindows:
    chosen: BatchSampler = REGISTRY.build("batch_samplers", sampler, {}, "")
    index = token_index(tokens, context_length, shift, chosen, [IndexEntry("all", 0, tokens, tokens)])
    return TrainingWindows(MaskedIds(np.arange(tokens, dtype=np.uint16)), index, chosen, seed)


def epoch(data: TrainingWindows, number: int) -> list[int]:
    return data.offsets(number * data.per_epoch, (number + 1) * data.per_epoch)


DATA = st.builds(
    lambda context_length, more, *others: windows(context_length + 1 + more, context_length, *others),
    st.integers(1, 9),
    st.integers(0, 60),
    st.integers(0, 2**63 - 1),
    st.booleans(),
    st.sampled_from(["shuffled", "sequential", "weighted"]),
)


@pytest.mark.parametrize("shift", [False, True])
def test_targets_are_the_inputs_moved_on_by_one_token(shift: bool) -> None:
    data = windows(101, shift=shift)
    x, y = data.batch(data.offsets(0, 40))
    assert x.shape == y.shape == (40, 4)
    assert x.dtype == y.dtype == np.int64
    np.testing.assert_array_equal(y, x + 1)
    np.testing.assert_array_equal(x[:, 0], data.offsets(0, 40))


def test_targets_that_are_only_read_are_ignored() -> None:
    data, learn = windows(101), np.arange(101) % 3 == 0
    data = replace(data, ids=replace(data.ids, learn=learn.astype(np.uint8)))
    x, y = data.batch(data.offsets(0, 40))
    np.testing.assert_array_equal(y, np.where((x + 1) % 3 == 0, x + 1, IGNORED))


@given(data=DATA, first=st.integers(0, 50))
def test_no_training_window_reaches_past_the_training_text(data: TrainingWindows, first: int) -> None:
    _, y = data.batch(data.offsets(first, first + 30))
    assert y.max() <= len(data.ids) - 1


@given(data=DATA, number=st.integers(0, 1000))
def test_an_epoch_reads_windows_that_do_not_overlap_each_once(data: TrainingWindows, number: int) -> None:
    offsets = sorted(epoch(data, number))
    assert len(offsets) == data.per_epoch >= 1
    assert (np.diff(offsets) == data.context_length).all()
    assert offsets[0] >= 0
    assert offsets[-1] + data.context_length < len(data.ids)


@given(data=DATA, cuts=st.lists(st.integers(0, 60), min_size=2, max_size=8).map(sorted))
def test_the_order_depends_on_the_index_alone_however_it_is_read(data: TrainingWindows, cuts: list[int]) -> None:
    parts = [data.offsets(first, last) for first, last in itertools.pairwise(cuts)]
    assert list(itertools.chain(*parts)) == data.offsets(cuts[0], cuts[-1])


def test_epochs_and_seeds_differ_in_their_order() -> None:
    data = windows(401)
    assert len({tuple(epoch(data, number)) for number in range(5)}) == 5
    assert epoch(data, 0) != epoch(windows(401, seed=2), 0)


def test_without_shifting_every_epoch_cuts_at_multiples_of_the_context() -> None:
    data = windows(402)
    assert sorted(epoch(data, 0)) == sorted(epoch(data, 1)) == list(range(0, 400, 4))


def test_shifting_lets_every_token_become_a_target_in_some_epoch() -> None:
    data = windows(43, shift=True)
    seen: set[int] = set()
    for number in range(100):
        seen.update(data.batch(epoch(data, number))[1].flatten().tolist())
    assert seen == set(range(1, 43))


def test_a_text_of_one_window_is_read_also_with_shifting() -> None:
    data = windows(5, shift=True)
    assert data.per_epoch == 1
    assert data.offsets(0, 3) == [0, 0, 0]


def test_sequential_reads_the_text_from_its_beginning_to_its_end_again_and_again() -> None:
    assert windows(21, sampler="sequential").offsets(3, 8) == [12, 16, 0, 4, 8]
    first, *others = epoch(windows(26, shift=True, sampler="sequential"), 1)
    assert others == [first + 4 * number for number in range(1, 5)]


# ── sources ───────────────────────────────────────────────────────────────────────────────────────


class Odd(BatchSampler):
    """A source for each name that it was made with; the window of each sample begins at `value`."""

    name: ClassVar[str] = "odd"
    names: tuple[Any, ...] = ()
    value: Any = 0

    def sources(self, documents: Iterator[IndexedDocument]) -> Iterable[str]:
        if "refused" in self.names:
            raise ValueError(f"it is not for {next(documents).name}")
        return self.names

    def offset(self, sample: int, seed: int, index: TokenIndex) -> Any:
        return self.value


def indexed(lengths: list[int], names: list[Any], context_length: int = 4, shift: bool = False) -> TokenIndex:
    starts = [0, *itertools.accumulate(lengths)]
    documents = [
        IndexEntry(f"{number}.txt", start, tokens, tokens)
        for number, (start, tokens) in enumerate(zip(starts, lengths, strict=False))
    ]
    return token_index(starts[-1], context_length, shift, Odd(names=tuple(names)), documents)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    context_length=st.integers(1, 7),
    shift=st.booleans(),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_a_sources_windows_begin_in_its_documents_a_context_apart_and_each_comes_once_an_epoch(
    lengths: list[int], context_length: int, shift: bool, seed: int, data: st.DataObject
) -> None:
    lengths.append(context_length + 1)  # each window ends before the end of the text
    names = [data.draw(st.sampled_from("xy")) for _ in lengths[:-1]]
    index = indexed(lengths, [*names, "z"], context_length, shift)
    owner = [name for name, length in zip([*names, "z"], lengths, strict=True) for _ in range(length)]
    for name, source in index.sources.items():
        begins = [place for place in range(len(owner) - context_length) if owner[place] == name]
        assert source.tokens == len(begins)
        for number in range(3):
            samples = range(number * source.windows, (number + 1) * source.windows)
            read = [source.in_order(sample, seed) for sample in samples]
            first = begins.index(read[0])
            assert read == begins[first::context_length][: source.windows]
            left = (
                len(begins) - context_length * source.windows
            )  # negative where the last window goes on behind them
            assert left <= (context_length if shift else 0)
            assert first < context_length + left if shift else first == 0
            assert sorted(source.shuffled(sample, seed) for sample in samples) == read


def test_neighbours_of_one_source_are_kept_as_one_run() -> None:
    index = indexed([10, 20, 30, 40, 50, 60], ["a", "a", "b", "b", "a", "a"])
    assert {name: list(source.starts) for name, source in index.sources.items()} == {"a": [0, 100], "b": [30]}


def test_documents_are_not_read_for_an_order_without_sources() -> None:
    def read() -> Iterator[IndexEntry]:
        pytest.fail("read")
        yield

    assert not token_index(100, 4, True, REGISTRY.build("batch_samplers", "shuffled", {}, ""), read()).sources


@pytest.mark.parametrize(
    ("names", "error", "told"),
    [
        (["a"], PluginError, ["'odd'", "None"]),
        (["a", "b", "c"], PluginError, ["'odd'", "'c'"]),
        (["a", 1], PluginError, ["'odd'", "1"]),
        (["refused", "b"], DataError, ["train.batch_sampler.odd", "0.txt"]),
        (["a", "b"], DataError, ["train.batch_sampler.odd", "'b'", "last 4 tokens"]),
    ],
)
def test_sources_that_cannot_be_read_are_an_error_before_training(
    names: list[Any], error: type[Exception], told: list[str]
) -> None:
    with pytest.raises(error) as raised:
        indexed([20, 3], names)
    assert all(each in str(raised.value) for each in told)


@pytest.mark.parametrize("value", [-1, 97, 3.0, None, "3"])
def test_what_is_no_offset_of_a_window_names_the_batch_sampler(value: object) -> None:
    odd = Odd(value=value)
    data = TrainingWindows(
        MaskedIds(np.zeros(100, np.uint16)), TokenIndex(100, 4, windows(100).index.text, {}), odd, 1
    )
    with pytest.raises(PluginError) as error:
        data.offsets(7, 8)
    assert all(each in str(error.value) for each in ("'odd'", repr(value), "sample 7", "0 to 95"))


# ── evaluation ────────────────────────────────────────────────────────────────────────────────────


def test_evaluations_windows_are_made_when_they_are_asked_for() -> None:
    every = evaluation_windows(10**15 + 5, 100, 100)
    assert len(every) == 10**13 + 1
    assert every[-1] == EvaluationWindow(10**15, 10**15 + 5, 4)
    assert every[1:3] == [EvaluationWindow(100, 201, 100), EvaluationWindow(200, 301, 100)]


@given(tokens=st.integers(0, 80), context_length=st.integers(1, 12), data=st.data())
def test_evaluation_scores_every_target_exactly_once(tokens: int, context_length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context_length))
    every = evaluation_windows(tokens, context_length, stride)
    targets = Counter(target for window in every for target in range(window.end - window.counted, window.end))
    assert targets == Counter(range(1, tokens))
    assert all(window.end - window.start - 1 <= context_length for window in every)


def test_windows_of_a_smaller_stride_see_at_least_the_rest_of_the_context() -> None:
    for window in evaluation_windows(101, 8, 3)[1:]:
        first_target = window.end - window.counted
        assert first_target - window.start >= 8 - 3


class Counted(BatchSampler):
    """Reads the text from its start, and, after the run's samples, its first window."""

    name: ClassVar[str] = "counted"

    def offset(self, sample: int, seed: int, index: TokenIndex, total_samples: int) -> int:
        return sample if sample < total_samples else 0


def test_a_sampler_may_ask_for_the_number_of_samples_of_the_run() -> None:
    data = TrainingWindows(MaskedIds(np.zeros(100, np.uint16)), windows(100).index, Counted(), 1)
    assert data.offsets(1, 6, total_samples=4) == [1, 2, 3, 0, 0]
    assert data.offsets(data.per_epoch - 1, data.per_epoch + 1) == [data.per_epoch - 1, 0]
