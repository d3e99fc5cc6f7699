"""What the tests of tokenizing in shards share: low limits, and a pool without processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.tokenize import sharded, shards, stage, tokenizers

SHARD = 1 << 11
WORDS = ["the", "river", "runs", "to", "a", "sea", "of", "light,", "and", "stone.", "we\n", "listen", "é", "語。"]


class Inline(Executor):
    """Runs each call at once, in this process. `fail` may raise an error in the n-th call of make_shard."""

    def __init__(self, fail: Callable[[int], None] = lambda number: None) -> None:
        self.made, self._fail = 0, fail

    def submit(self, call: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            if call.func is shards.make_shard:
                self.made += 1
                self._fail(self.made)
            future.set_result(call(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def with_low_limits(monkeypatch: pytest.MonkeyPatch, sample: int = 1 << 30) -> None:
    """Makes small corpora large ones."""
    monkeypatch.setattr(stage, "SMALL_BYTES", 0)
    monkeypatch.setattr(shards, "SHARD_BYTES", SHARD)
    monkeypatch.setattr(tokenizers, "SAMPLE_BYTES", sample)


def run_inline(monkeypatch: pytest.MonkeyPatch, fail: Callable[[int], None] = lambda number: None) -> None:
    """Replaces the pool of processes."""

    @contextmanager
    def pool(processes: int) -> Iterator[Executor]:
        yield Inline(fail)

    monkeypatch.setattr(sharded, "process_pool", pool)


def made_up(generator: random.Random, words: int) -> str:
    """Some text."""
    return " ".join(generator.choices(WORDS, k=words)) + "\n"


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
