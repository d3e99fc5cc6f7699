"""The windows of a text: for training in the order of a batch sampler, for evaluation in sequence."""

from __future__ import annotations

import operator
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee, zip_longest
from typing import Any, overload

import numpy as np

from pipeline.core.errors import DataError, PluginError
from pipeline.data.index import IndexEntry
from pipeline.data.masked import MaskedIds
from pipeline.plugin.calls import calling, guarded_items, label, supported_arguments
from pipeline.plugin.components import IGNORED, BatchSampler
from pipeline.plugin.order import IndexedDocument, Source, TokenIndex


@dataclass(frozen=True)
class TrainingWindows:
    """The training tokens as windows of at most `context_length` tokens, in the order of a batch sampler.

    Attributes:
        ids: The training tokens, and which of them are learnt.
        index: Their sources.
        sampler: Maps each sample to its offset. It is a pure function, so the order needs no state to resume.
        seed: Decides the order, and with `train.shift_windows` where each epoch cuts the text.
    """

    ids: MaskedIds
    index: TokenIndex
    sampler: BatchSampler
    seed: int

    @property
    def context_length(self) -> int:
        return self.index.context_length

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch."""
        return self.index.text.windows

    def offsets(self, first: int, last: int, total_samples: int | None = None) -> list[int]:
        """The offsets of the samples first … last−1 of the run.

        Args:
            first, last: The samples.
            total_samples: The number of samples of the run; None for an epoch's.

        Raises:
            PluginError: the sampler returns an invalid offset.
        """
        sampler, total = self.sampler, total_samples or self.per_epoch
        more = supported_arguments(sampler, "offset", total_samples=total)
        with calling(sampler):
            found = [sampler.offset(sample, self.seed, self.index, **more) for sample in range(first, last)]
        for sample, offset in enumerate(found, first):
            try:
                self.index.window_end(operator.index(offset))
            except (TypeError, IndexError):
                last = len(self.ids) - self.context_length - 1
                what = (
                    f"an integer from 0 to {last}, the start of the last window"
                    if self.index.ends is None
                    else "from in_order or shuffled of a source, as windows are packs (train.pack_documents)"
                )
                raise PluginError(
                    f"{label(self.sampler)} returned the offset {offset!r} for sample {sample}: it must be {what}"
                ) from None
        return found

    def batch(self, offsets: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Inputs and targets, int64 [B, T], of the windows at `offsets`; targets are inputs shifted by one token,
        or `IGNORED` where they are not to be learnt, and after the end of a pack."""
        shape = (len(offsets), self.context_length)
        inputs, targets = np.full(shape, self.ids.document_end or 0, np.int64), np.full(shape, IGNORED, np.int64)
        for row, offset in enumerate(offsets):
            last = self.index.window_end(offset) - 1
            inputs[row, : last - offset] = self.ids.ids[offset:last]
            targets[row, : last - offset] = self.ids.targets(offset + 1, last + 1)
        return inputs, targets


def token_index(
    tokens: int, context_length: int, shift: bool, sampler: BatchSampler, documents: Iterable[IndexEntry]
) -> TokenIndex:
    """The index of a text of `tokens` tokens, with the sources into which `sampler` groups its documents.

    Adjacent documents of one source are merged into one span. Without sources, the documents are not read.

    Raises:
        DataError: the sampler refuses the documents, or a source has no window.
        PluginError: the sampler does not name one source per document.
    """
    n_offsets = tokens - context_length  # the number of valid window offsets
    text = Source("", context_length, shift, (0,), (0,), n_offsets)
    found: dict[str, _Spans] = {}
    if has_sources(sampler):
        for entry, name in named_documents(sampler, documents):
            found.setdefault(name, _Spans()).add(entry.start, min(entry.end, n_offsets))
    for name, spans in found.items():
        if not spans.tokens:
            raise DataError(
                f"train.batch_sampler.{sampler.name}: all of {name!r} lies in the last {context_length} tokens of "
                "the training split, where no window fits: remove it, or add text"
            )
    sources = {
        name: Source(name, context_length, shift, spans.starts, spans.before, spans.tokens)
        for name, spans in found.items()
    }
    return TokenIndex(tokens, context_length, text, sources)


def has_sources(sampler: BatchSampler) -> bool:
    """Whether a sampler groups the documents into sources; otherwise it does not read them."""
    return type(sampler).sources is not BatchSampler.sources


def named_documents(sampler: BatchSampler, documents: Iterable[IndexEntry]) -> Iterator[tuple[IndexEntry, str]]:
    """The documents, each with the name of the source to which `sampler` assigns it.

    Raises:
        DataError: the sampler refuses the documents.
        PluginError: the sampler does not name one source per document.
    """
    entries, copies = tee(documents)
    indexed = (IndexedDocument(entry.name, entry.tokens) for entry in copies)
    names = guarded_items(sampler, lambda: sampler.sources(indexed), passes=(ValueError,))
    try:
        for entry, name in zip_longest(entries, names):
            if entry is None or not isinstance(name, str):
                raise PluginError(f"{label(sampler)}: sources must yield one str per document, not {name!r}")
            yield entry, name
    except ValueError as error:
        raise DataError(f"train.batch_sampler.{sampler.name}: {error}") from None


class _Spans:
    """The spans of a source's tokens: the start of each, and the number of the source's tokens before it."""

    def __init__(self) -> None:
        self.starts, self.before, self.tokens = array("q"), array("q"), 0

    def add(self, start: int, end: int) -> None:
        """Adds the tokens start … end−1; merges them with an adjacent span."""
        if start >= end:
            return
        if not self.tokens or self.starts[-1] + self.tokens - self.before[-1] != start:
            self.starts.append(start)
            self.before.append(self.tokens)
        self.tokens += end - start


@dataclass(frozen=True)
class EvaluationWindow:
    """A window for evaluation: inputs ids[start:end−1], targets ids[start+1:end]. Only the last `counted` targets
    are scored (those that are learnt); the previous windows scored the others."""

    start: int
    end: int
    counted: int


def evaluation_windows(tokens: int, context_length: int, stride: int) -> Sequence[EvaluationWindow]:
    """A lazy sequence of windows that score each of the `tokens` − 1 targets exactly once, including the tail.

    With `stride` = `context_length` they do not overlap. With a smaller one, each target after the first window has
    at least context_length − stride tokens of context.
    """
    stop = max(tokens - context_length - 1, 0) + stride if tokens > 1 else 0
    return _EvaluationWindows(range(0, stop, stride), tokens, context_length)


class LazyWindows(Sequence[EvaluationWindow]):
    """Windows that are made when they are asked for."""

    @abstractmethod
    def _at(self, number: int) -> EvaluationWindow: ...

    @overload
    def __getitem__(self, index: int) -> EvaluationWindow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[EvaluationWindow]: ...
    def __getitem__(self, index: int | slice) -> EvaluationWindow | Sequence[EvaluationWindow]:
        chosen = range(len(self))[index]
        return [self._at(each) for each in chosen] if isinstance(chosen, range) else self._at(chosen)


@dataclass(frozen=True)
class _EvaluationWindows(LazyWindows):
    starts: range
    tokens: int
    context_length: int

    def __len__(self) -> int:
        return len(self.starts)

    def _at(self, number: int) -> EvaluationWindow:
        start = self.starts[number]
        end = min(start + self.context_length + 1, self.tokens)
        scored = min(start + self.context_length + 1 - self.starts.step, self.tokens) if start else 1
        return EvaluationWindow(start, end, end - scored)
