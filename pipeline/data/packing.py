"""Packs: windows that hold whole consecutive documents, so that no document is cut where it need not be."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.core.errors import DataError
from pipeline.data.batches import EvaluationWindow, LazyWindows, has_sources, named_documents
from pipeline.data.index import IndexEntry
from pipeline.data.masked import MaskedIds
from pipeline.plugin.components import BatchSampler
from pipeline.plugin.order import PackedSource, TokenIndex


@dataclass(frozen=True)
class Packs(LazyWindows):
    """The packs of a text, in its order, as windows for evaluation: all targets of each are scored.

    Attributes:
        starts, ends: The offsets of the first token of each, and after its last one.
    """

    starts: Sequence[int]
    ends: Sequence[int]

    def __len__(self) -> int:
        return len(self.starts)

    def _at(self, number: int) -> EvaluationWindow:
        start, end = self.starts[number], self.ends[number]
        return EvaluationWindow(start, end, end - start - 1)


def packed_windows(ids: MaskedIds, documents: Iterable[IndexEntry], context_length: int) -> Packs:
    """Packs the documents of a text, in order, into windows of at most `context_length` + 1 tokens.

    A longer document is cut after a part that is learnt, such as an answer, and what is only read between two
    windows may be left out: the second one ends with the part that is learnt, and begins as early as it can. A
    learnt part that does not fit into a window is cut every `context_length` tokens. Each learnt token but the
    first of a document is a target of exactly one window.

    Args:
        ids: The text, with the `document_end` after which the first token is no target.
        documents: Its documents.
        context_length: T.
    """
    packer = _Packer(ids, context_length)
    for entry in documents:
        packer.add(entry, 0)
    return packer.packs()


def packed_index(
    ids: MaskedIds, context_length: int, sampler: BatchSampler, documents: Iterable[IndexEntry]
) -> tuple[TokenIndex, Packs]:
    """The index of a text whose windows are packs, and the packs. Documents of different sources are not packed
    together.

    Raises:
        DataError: the sampler refuses the documents, or a source has nothing to learn.
        PluginError: the sampler does not name one source per document.
    """
    packer, names = _Packer(ids, context_length), dict[str, int]()
    if has_sources(sampler):
        for entry, name in named_documents(sampler, documents):
            packer.add(entry, names.setdefault(name, len(names)))
    else:
        for entry in documents:
            packer.add(entry, 0)
    packs, sources = packer.packs(), {}
    for name, number in names.items():
        starts = array("q", (packs.starts[pack] for pack, owner in enumerate(packer.sources) if owner == number))
        if not starts:
            raise DataError(f"train.batch_sampler.{sampler.name}: {name!r} has no token that is to be learnt")
        sources[name] = PackedSource.of(name, context_length, starts)
    text = PackedSource.of("", context_length, packs.starts)
    return TokenIndex(len(ids), context_length, text, sources, packs.ends), packs


class _Packer:
    """Packs documents, added in the order of the text.

    Attributes:
        starts, ends: As in `Packs`.
        sources: The number of the source of each pack.
    """

    def __init__(self, ids: MaskedIds, context_length: int) -> None:
        self._ids, self._context = ids, context_length
        self.starts, self.ends, self.sources = array("q"), array("q"), array("q")

    def add(self, document: IndexEntry, source: int) -> None:
        """Adds a document that belongs to the source with this number."""
        for start, end in self._pieces(document.start, document.end):
            follows = bool(self.ends) and (self.ends[-1], self.sources[-1]) == (start, source)
            if follows and end - self.starts[-1] <= self._context + 1:
                self.ends[-1] = end
            else:
                self._drop_single_token()
                self.starts.append(start)
                self.ends.append(end)
                self.sources.append(source)

    def packs(self) -> Packs:
        """The packs of all documents added."""
        self._drop_single_token()
        return Packs(self.starts, self.ends)

    def _drop_single_token(self) -> None:
        """Drops the last pack if it has a single token, and so no target."""
        if self.ends and self.ends[-1] - self.starts[-1] == 1:
            for each in (self.starts, self.ends, self.sources):
                each.pop()

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The first token of each piece of a document, and the one after its last; see `packed_windows`."""
        most = self._context + 1
        if end - start <= most:
            yield start, end
            return
        cut = start  # the end of the piece that begins at `start`, so far
        for first, last in self._learnt(start, end):
            if last - start > most:
                if cut > start:
                    yield start, cut
                    start = cut
                if last - first < most:
                    start = max(start, last - most)
                else:
                    start = max(start, first - max(self._context // 2, 1))
                    while last - start > most:
                        yield start, start + most
                        start += self._context
            cut = last
        if cut > start:
            yield start, cut

    def _learnt(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The runs of learnt tokens in a range: the first token of each, and the one after its last."""
        if self._ids.learn is None:
            yield start, end
            return
        learnt = self._ids.learn[start:end] != 0
        changes = np.flatnonzero(np.diff(learnt, prepend=False, append=False)) + start
        yield from zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True)
