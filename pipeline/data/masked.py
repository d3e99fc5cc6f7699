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
    """

    ids: AnyIds
    learn: AnyIds | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def targets(self, start: int, end: int) -> Targets:
        """The tokens start … end−1 as targets: their ids, or `IGNORED` where they are only read."""
        ids = self.ids[start:end].astype(np.int64)
        if self.learn is not None:
            ids[self.learn[start:end] == 0] = IGNORED
        return ids

    def learnt(self, start: int, end: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whether each of the tokens start … end−1 is learnt."""
        if self.learn is None:
            return np.ones(max(min(end, len(self)) - start, 0), np.bool_)
        return np.asarray(self.learn[start:end] != 0)
