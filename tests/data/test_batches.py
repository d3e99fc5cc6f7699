"""The order of the data: which windows are read, when, and that targets are the inputs moved on by one."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.batches import TrainingWindows, evaluation_windows


def windows(tokens: int, context_length: int = 4, seed: int = 1, shift: bool = False) -> TrainingWindows:
    return TrainingWindows(np.arange(tokens, dtype=np.uint16), context_length, seed, shift)


def epoch(data: TrainingWindows, number: int) -> list[int]:
    return data.offsets(number * data.per_epoch, (number + 1) * data.per_epoch)


DATA = st.builds(
    lambda context_length, more, seed, shift: windows(context_length + 1 + more, context_length, seed, shift),
    st.integers(1, 9),
    st.integers(0, 60),
    st.integers(0, 2**63 - 1),
    st.booleans(),
)


@pytest.mark.parametrize("shift", [False, True])
def test_targets_are_the_inputs_moved_on_by_one_token(shift: bool) -> None:
    data = windows(101, shift=shift)
    x, y = data.batch(data.offsets(0, 40))
    assert x.shape == y.shape == (40, 4)
    assert x.dtype == y.dtype == np.int64
    np.testing.assert_array_equal(y, x + 1)
    np.testing.assert_array_equal(x[:, 0], data.offsets(0, 40))


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
