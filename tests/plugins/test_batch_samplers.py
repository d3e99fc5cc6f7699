"""Shares of a mixture: which documents they stand for, and how closely the samples follow them."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from math import ceil, log2

import pytest
from conftest import REPOSITORY, Project
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import DataError, ParamsError
from pipeline.data.batches import token_index
from pipeline.data.index import IndexEntry
from pipeline.plugin import BatchSampler, TokenIndex
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["batch_samplers"])
NAMES = ["books/a.txt", "books/old/b.txt", "notes.txt", "web/1.jsonl#1", "web/1.jsonl#2", "web/2.jsonl#1"]


def weighted(shares: dict[str, float]) -> BatchSampler:
    sampler: BatchSampler = REGISTRY.build(
        "batch_samplers", "weighted", {"weighted": {"shares": shares}}, "weighted"
    )
    return sampler


def mixed(shares: dict[str, float], names: list[str] = NAMES, shift: bool = True) -> TokenIndex:
    """A text of these documents, each of 100 tokens."""
    documents = [IndexEntry(name, 100 * number, 100, 100) for number, name in enumerate(names)]
    return token_index(100 * len(names), 4, shift, weighted(shares), documents)


@pytest.mark.parametrize(
    ("shares", "sources"),
    [
        ({"**": 1}, {"**": [0]}),
        ({"books": 1, "**": 1}, {"books": [0], "**": [200]}),
        ({"books/": 1, "*.txt": 1, "web": 1}, {"books/": [0], "*.txt": [200], "web": [300]}),
        ({"books/old": 2, "books": 1, "**": 1}, {"books": [0], "books/old": [100], "**": [200]}),
        ({"web/1.jsonl": 1, "**": 1}, {"**": [0, 500], "web/1.jsonl": [300]}),
        ({"*/1.jsonl": 1, "*": 1}, {"*": [0, 500], "*/1.jsonl": [300]}),
        ({"notes.txt": 1, "*[ab].txt": 1, "web/*#1": 1, "*": 1},
         {"notes.txt": [200], "*[ab].txt": [0], "web/*#1": [300, 500], "*": [400]}),
    ],
)  # fmt: skip
def test_shares_are_by_folder_file_or_pattern_and_the_longest_decides(
    shares: dict[str, float], sources: dict[str, list[int]]
) -> None:
    for written in (shares, dict(reversed(shares.items()))):
        assert {name: list(source.starts) for name, source in mixed(written).sources.items()} == sources


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"books": 1}, ["notes.txt", "'**'"]),
        ({"books": 1, "book": 1, "films": 1, "**": 1}, ["'book'", "'films'"]),
    ],
)
def test_shares_that_do_not_fit_the_documents_are_one_line(shares: dict[str, float], told: list[str]) -> None:
    with pytest.raises(DataError) as error:
        mixed(shares)
    assert all(each in str(error.value) for each in ["train.batch_sampler.weighted: shares", *told])


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"books": 0}, "weighted.shares.books: must be greater than 0"),
        ({"books": -1}, "weighted.shares.books"),
        ({"books": "much"}, "weighted.shares.books"),
        ({}, "weighted.shares"),
    ],
)
def test_a_share_that_is_none_is_one_line(shares: dict[str, float], told: str) -> None:
    with pytest.raises(ParamsError, match=told.split(":")[0]):
        weighted(shares)


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9), first=st.integers(0, 10**12))
def test_at_any_moment_each_source_has_had_its_share(weights: list[float], first: int) -> None:
    sampler = weighted({f"{number}": weight for number, weight in enumerate(weights)})
    drawn = [sampler._source(sample) for sample in range(first, first + 100)]  # type: ignore[attr-defined]
    counts: dict[str, int] = {}
    for name, before in drawn:
        assert counts.setdefault(name, before) == before  # one after the other, none twice
        counts[name] += 1
    for sample, (name, before) in enumerate(drawn, first):
        share = weights[int(name)] / sum(weights)
        assert abs(before - sample * share) <= max(ceil(log2(len(weights))), 1) / 2 + 1e-2
    assert sum(Counter(name for name, _ in drawn).values()) == 100


def test_each_window_of_a_source_comes_once_before_one_comes_twice_and_in_an_order_of_its_own() -> None:
    shares = {"books": 0.5, "web": 0.3, "**": 0.2}
    sampler, index = weighted(shares), mixed(shares)
    samples = [sampler.offset(sample, 1, index) for sample in range(1000)]
    ends = {name: list(accumulate([0, *[index.sources[name].windows] * 20])) for name in shares}
    bounds = {"books": range(200), "**": range(200, 300), "web": range(300, 600)}
    for name, places in bounds.items():
        drawn = [offset for offset in samples if offset in places]
        assert len(drawn) == pytest.approx(1000 * shares[name], abs=1)
        epochs = [
            drawn[start:end] for start, end in zip(ends[name], ends[name][1:], strict=False) if end <= len(drawn)
        ]
        assert len(epochs) >= 3
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        assert len({tuple(offset % 4 for offset in epoch) for epoch in epochs}) > 1  # shifted
        assert all(epoch != sorted(epoch) for epoch in epochs)


def test_training_on_a_mixture_says_what_does_not_fit(project: Project) -> None:
    for stage in ("tokenize", "split"):
        project.succeed(stage)
    choose = ("--set", "train.batch_sampler.name=weighted", "--set")
    result = project.run("train", *choose, "train.batch_sampler.weighted.shares={text-*: 1.0, book: 2.0}")
    assert result.code == 1
    assert all(each in result.err for each in ("train.batch_sampler.weighted", "'book'"))
    project.succeed("train", *choose, "train.batch_sampler.weighted.shares={text-*: 1.0, text-0*: 2.0}")
