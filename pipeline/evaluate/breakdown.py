"""Breakdown of the loss: sums by document, by block of text, by position in the context, and by token frequency.

No per-token data is stored, so that held-out text of any length fits in memory. Each text has sums by document, by
block (at most 128), by position, and by power of ten of the token's count in the training text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.evaluate.places import Offsets, target_sums

if TYPE_CHECKING:
    from pipeline.data.masked import MaskedIds
    from pipeline.model.scoring import Scores

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]
Sums = np.ndarray[tuple[int, int], np.dtype[np.float64]]

MOST_BLOCKS = 128
_POWERS = 10 ** np.arange(18)


class UnitScore(NamedTuple):
    """The sums over a document or a block of text.

    Attributes:
        name: The name of the document, or the number of the block.
        tokens: The number of targets: all tokens that are learnt, except for the first one of the split.
        nats: The sum of their negative log-likelihoods.
        bytes: The size of their text in UTF-8.
        text_nats: The nats without special tokens, which have no text.
        correct: The number of targets that were the most likely token.
    """

    name: str
    tokens: int
    nats: float
    bytes: int
    text_nats: float
    correct: int


class PositionLoss(NamedTuple):
    """The targets predicted from the context position `position`, from 0; `nats` is their mean loss."""

    position: int
    tokens: int
    nats: float


class FrequencyLoss(NamedTuple):
    """The targets that occur in the training text at least `lowest` times and below the next row's; mean `nats`."""

    lowest: int
    tokens: int
    nats: float


class Breakdown(NamedTuple):
    """The loss of one held-out text by several groupings. Rows without targets are left out, except for blocks.

    Attributes:
        documents: By document, in the order of the text.
        blocks: By block: a power of two (at most 128) of stretches with about equally many bytes, on average at
            least as long as a window.
        positions: By position in the context.
        frequencies: By the token's count in the training text: 0, 1 to 9, 10 to 99, …
    """

    documents: list[UnitScore]
    blocks: list[UnitScore]
    positions: list[PositionLoss]
    frequencies: list[FrequencyLoss]


class BreakdownAccumulator:
    """Accumulates scores, in the order of the text, into a `Breakdown`.

    Attributes:
        targets: The number of targets of the text.
    """

    def __init__(
        self,
        ids: MaskedIds,
        documents: Sequence[tuple[str, int]],
        train_counts: Counts,
        byte_lengths: np.ndarray[Any, Any],
        context_length: int,
    ) -> None:
        """
        Args:
            ids: The tokens of the text; those that are learnt, but not the first, are targets.
            documents: The name and the offset of the first token of each document.
            train_counts: The count of each id in the training text [V].
            byte_lengths: The number of bytes of text of each id [V]; 0 for special tokens.
            context_length: T.
        """
        self._names = [name for name, _ in documents]
        self._starts = np.array([start for _, start in documents], dtype=np.int64)
        self._byte_lengths = byte_lengths
        self._bucket = np.searchsorted(_POWERS, train_counts, side="right")
        self.targets, size = target_sums(ids, byte_lengths)
        self._all_bytes = max(size, 1)
        self._bytes_before = 0  # of the next target
        blocks = _blocks(self.targets, context_length)
        self._documents = np.zeros((5, len(documents)))
        self._blocks = np.zeros((5, blocks))
        self._positions = np.zeros((2, context_length))
        self._frequencies = np.zeros((2, int(self._bucket.max()) + 1))

    def add(self, scores: Scores, positions: Offsets) -> None:
        """Adds the scores of the next targets in the text, and their positions in the context."""
        count = len(scores.targets)
        if not count:
            return
        lengths = self._byte_lengths[scores.targets]
        ends = self._bytes_before + np.cumsum(lengths)
        ones = np.ones(count)
        columns = [ones, scores.nats, lengths, np.where(lengths > 0, scores.nats, 0.0), scores.correct]
        document = np.searchsorted(self._starts, scores.places, side="right") - 1
        _add(self._documents, document, columns)
        size = self._blocks.shape[1]
        _add(self._blocks, np.minimum((ends - lengths) * size // self._all_bytes, size - 1), columns)
        _add(self._positions, positions, columns[:2])
        _add(self._frequencies, self._bucket[scores.targets], columns[:2])
        self._bytes_before += int(lengths.sum())

    def breakdown(self) -> Breakdown:
        """The breakdown of all scores added so far."""
        return Breakdown(
            documents=[unit for unit in _units(self._names, self._documents) if unit.tokens],
            blocks=_units([str(number) for number in range(self._blocks.shape[1])], self._blocks),
            positions=_means(PositionLoss, range(self._positions.shape[1]), self._positions),
            frequencies=_means(
                FrequencyLoss, [0, *_POWERS[: self._frequencies.shape[1] - 1].tolist()], self._frequencies
            ),
        )


def _blocks(targets: int, context_length: int) -> int:
    """The number of blocks: the largest power of two, at most 128, with blocks at least as long as a window on
    average.

    Powers of two allow pairing the blocks of any two runs, by merging the finer ones.
    """
    windows = max(targets // context_length, 1)
    return min(1 << (windows.bit_length() - 1), MOST_BLOCKS)


def _add(sums: Sums, groups: np.ndarray[Any, Any], columns: Sequence[np.ndarray[Any, Any]]) -> None:
    """Adds the values of each column, summed by group, to its row of `sums` [columns, groups]."""
    first, last = int(groups.min()), int(groups.max()) + 1
    for row, column in zip(sums, columns, strict=True):
        row[first:last] += np.bincount(groups - first, weights=column, minlength=last - first)


def _units(names: Sequence[str], sums: Sums) -> list[UnitScore]:
    return [
        UnitScore(name, int(tokens), nats, int(size), text_nats, int(correct))
        for name, (tokens, nats, size, text_nats, correct) in zip(names, sums.T.tolist(), strict=True)
    ]


def _means(row: Callable[[int, int, float], Any], keys: Iterable[int], sums: Sums) -> list[Any]:
    return [
        row(key, int(tokens), nats / tokens)
        for key, (tokens, nats) in zip(keys, sums.T.tolist(), strict=True)
        if tokens
    ]
