"""Where a model is good and where it is not: sums by document, by block of text, by position, by frequency.

Nothing is kept of a single token, so that held-out text of any length fits: each side has sums by document, by at
most 128 blocks, by position in the context, and by power of ten of the token's count in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pipeline.data.tokens import Ids
    from pipeline.model.scoring import Scores

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]
Sums = np.ndarray[tuple[int, int], np.dtype[np.float64]]

MOST_BLOCKS = 128
_AT_ONCE = 1 << 20
_POWERS = 10 ** np.arange(18)


class UnitScore(NamedTuple):
    """The sums of a document, or of a block of text.

    Attributes:
        name: The document's name; a block's number.
        tokens: Its targets: all its tokens, but for the first one of the split.
        nats: Their negative log-likelihood.
        bytes: Their text's size in UTF-8.
        text_nats: The nats without those of special tokens, which are no text.
        correct: How many of them were the likeliest token.
    """

    name: str
    tokens: int
    nats: float
    bytes: int
    text_nats: float
    correct: int


class PositionLoss(NamedTuple):
    """The targets whose last known token is the context's number `position`, from 0; `nats` is their mean."""

    position: int
    tokens: int
    nats: float


class FrequencyLoss(NamedTuple):
    """The targets that occur in the training text `lowest` times or more, below the next such row; mean `nats`."""

    lowest: int
    tokens: int
    nats: float


class Breakdown(NamedTuple):
    """One side's loss, taken apart. Rows without a target are left out, but for blocks.

    Attributes:
        documents: By document, in the text's order.
        blocks: By block: 2, 4, … or 128 stretches of about equally many bytes, on average no shorter than a window.
        positions: By position in the context.
        frequencies: By how often the token occurs in the training text: never, 1 to 9 times, 10 to 99, …
    """

    documents: list[UnitScore]
    blocks: list[UnitScore]
    positions: list[PositionLoss]
    frequencies: list[FrequencyLoss]


class BreakdownAccumulator:
    """Adds up scores, which must come in the order of the text, into a `Breakdown`."""

    def __init__(
        self,
        ids: Ids,
        documents: Sequence[tuple[str, int]],
        train_counts: Counts,
        byte_lengths: np.ndarray[Any, Any],
        context_length: int,
        stride: int,
    ) -> None:
        """
        Args:
            ids: The side's tokens, all but the first of which are targets.
            documents: The name and the first token of each of its documents.
            train_counts: How often each id occurs in the training text [V].
            byte_lengths: The bytes of text that each id stands for [V]; 0 for special tokens.
            context_length: T.
            stride: How far the windows move.
        """
        self._names = [name for name, _ in documents]
        self._starts = np.array([start for _, start in documents], dtype=np.int64)
        self._byte_lengths, self._context, self._stride = byte_lengths, context_length, stride
        self._bucket = np.searchsorted(_POWERS, train_counts, side="right")
        self._all_bytes = max(sum_of(ids[1:], byte_lengths), 1)
        self._next, self._bytes_before = 1, 0  # the target that comes next, and the bytes of those before
        blocks = _blocks(len(ids) - 1, context_length)
        self._documents = np.zeros((5, len(documents)))
        self._blocks = np.zeros((5, blocks))
        self._positions = np.zeros((2, context_length))
        self._frequencies = np.zeros((2, int(self._bucket.max()) + 1))

    def add(self, scores: Scores) -> None:
        """Counts further targets, those that come next in the text."""
        count = len(scores.targets)
        places = np.arange(self._next, self._next + count)
        lengths = self._byte_lengths[scores.targets]
        ends = self._bytes_before + np.cumsum(lengths)
        ones = np.ones(count)
        columns = [ones, scores.nats, lengths, np.where(lengths > 0, scores.nats, 0.0), scores.correct]
        document = np.searchsorted(self._starts, places, side="right") - 1
        _add(self._documents, document, columns)
        size = self._blocks.shape[1]
        _add(self._blocks, np.minimum((ends - lengths) * size // self._all_bytes, size - 1), columns)
        _add(self._positions, positions(places - 1, self._context, self._stride), columns[:2])
        _add(self._frequencies, self._bucket[scores.targets], columns[:2])
        self._next += count
        self._bytes_before += int(lengths.sum())

    def breakdown(self) -> Breakdown:
        """All that was added."""
        return Breakdown(
            documents=[unit for unit in _units(self._names, self._documents) if unit.tokens],
            blocks=_units([str(number) for number in range(self._blocks.shape[1])], self._blocks),
            positions=_means(PositionLoss, range(self._positions.shape[1]), self._positions),
            frequencies=_means(
                FrequencyLoss, [0, *_POWERS[: self._frequencies.shape[1] - 1].tolist()], self._frequencies
            ),
        )


def positions(targets: Counts, context_length: int, stride: int) -> Counts:
    """How many tokens of its window came before each target, less one, where `evaluation_windows` made the windows;
    `targets` are their numbers in the text, from 0 on."""
    windows: Counts = np.maximum(targets - context_length + stride, 0) // stride
    return targets - windows * stride


def _blocks(targets: int, context_length: int) -> int:
    """The largest power of two of blocks, at most 128, that are on average as long as a window: so that any two
    runs' blocks can be paired, the finer ones taken together."""
    windows = max(targets // context_length, 1)
    return min(1 << (windows.bit_length() - 1), MOST_BLOCKS)


def _add(sums: Sums, groups: np.ndarray[Any, Any], columns: Sequence[np.ndarray[Any, Any]]) -> None:
    """Adds each column's values to its row of `sums` [columns, groups], by group."""
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


def token_counts(ids: Ids, vocab_size: int) -> Counts:
    """How often each id occurs [V]; read in parts, since the ids may be more than memory holds."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), _AT_ONCE):
        counts += np.bincount(ids[start : start + _AT_ONCE], minlength=vocab_size)
    return counts


def sum_of(ids: Ids, values: np.ndarray[Any, Any]) -> int:
    """The sum of each id's value, read in parts."""
    return sum(int(values[ids[start : start + _AT_ONCE]].sum()) for start in range(0, len(ids), _AT_ONCE))
