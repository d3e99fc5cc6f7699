"""The windows of a text: for training in the order of a batch sampler, for evaluation in sequence."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import tee, zip_longest
from typing import Any, overload

import numpy as np

from pipeline.core.errors import DataError, PluginError
from pipeline.data.index import IndexEntry
from pipeline.data.masked import MaskedIds
from pipeline.plugin.calls import calling, guarded_items, label, supported_arguments
from pipeline.plugin.components import BatchSampler
from pipeline.plugin.order import IndexedDocument, Source, TokenIndex


@dataclass(frozen=True)
class TrainingWindows:
    """The training tokens as windows of `context_length` tokens, in the order of a batch sampler.

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
        end = len(self.ids) - self.context_length
        for sample, offset in enumerate(found, first):
            if not isinstance(offset, int | np.integer) or not 0 <= offset < end:
                raise PluginError(
                    f"{label(self.sampler)} returned the offset {offset!r} for sample {sample}: it must be an "
                    f"integer from 0 to {end - 1}, the start of the last window"
                )
        return found

    def batch(self, offsets: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Inputs and targets, int64 [B, T], of the windows at `offsets`; targets are inputs shifted by one token,
        or `IGNORED` where they are only read."""
        length = self.context_length
        inputs, targets = (np.empty((len(offsets), length), np.int64) for _ in range(2))
        for row, offset in enumerate(offsets):
            inputs[row] = self.ids.ids[offset : offset + length]
            targets[row] = self.ids.targets(offset + 1, offset + 1 + length)
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
    if type(sampler).sources is BatchSampler.sources:
        return TokenIndex(tokens, context_length, text, {})
    found: dict[str, _Spans] = {}
    entries, copies = tee(documents)
    indexed = (IndexedDocument(entry.name, entry.tokens) for entry in copies)
    names = guarded_items(sampler, lambda: sampler.sources(indexed), passes=(ValueError,))
    try:
        for entry, name in zip_longest(entries, names):
            if entry is None or not isinstance(name, str):
                raise PluginError(f"{label(sampler)}: sources must yield one str per document, not {name!r}")
            found.setdefault(name, _Spans()).add(entry.start, min(entry.end, n_offsets))
    except ValueError as error:
        raise DataError(f"train.batch_sampler.{sampler.name}: {error}") from None
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


@dataclass(frozen=True)
class _EvaluationWindows(Sequence[EvaluationWindow]):
    starts: range
    tokens: int
    context_length: int

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> EvaluationWindow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[EvaluationWindow]: ...
    def __getitem__(self, index: int | slice) -> EvaluationWindow | Sequence[EvaluationWindow]:
        chosen = self.starts[index]
        if isinstance(chosen, range):
            return [self._at(start) for start in chosen]
        return self._at(chosen)

    def _at(self, start: int) -> EvaluationWindow:
        end = min(start + self.context_length + 1, self.tokens)
        scored = min(start + self.context_length + 1 - self.starts.step, self.tokens) if start else 1
        return EvaluationWindow(start, end, end - scored)
