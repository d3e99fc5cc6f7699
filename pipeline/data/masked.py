"""Token ids of which some are only read: they are inputs of the model, but no targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.joined import AnyIds
from pipeline.plugin.components import IGNORED

Targets = np.ndarray[tuple[int], np.dtype[np.int64]]
Learn = np.ndarray[tuple[int], np.dtype[np.uint8]]
"""1 for each token that is learnt, 0 for one that is only read [tokens]."""


@dataclass(frozen=True)
class MaskedIds:
    """The ids of a token file and which of them are learnt.

    Attributes:
        ids: The ids [tokens].
        learn: 1 for each token that is learnt, else 0 [tokens], uint8; None if all are.
        document_end: The id that ends a document, if the first token of each document is not to be learnt: where
            documents do not see each other, nothing precedes it. None: tokens follow from the document before.
    """

    ids: AnyIds
    learn: AnyIds | None = None
    document_end: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def targets(self, start: int, end: int) -> Targets:
        """The tokens start … end−1 as targets: their ids, or `IGNORED` where they are not to be learnt."""
        ids = self.ids[start:end].astype(np.int64)
        if self.learn is not None or self.document_end is not None:
            ids[~self.learnt(start, end)] = IGNORED
        return ids

    def learnt(self, start: int, end: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whether each of the tokens start … end−1 is to be learnt."""
        size = max(min(end, len(self)) - start, 0)
        learnt = np.ones(size, np.bool_) if self.learn is None else np.asarray(self.learn[start:end] != 0)
        if self.document_end is not None and size:
            before = max(start - 1, 0)
            learnt[before + 1 - start :] &= self.ids[before : start + size - 1] != self.document_end
            learnt[: before + 1 - start] = False  # the first token of the text
        return learnt
