"""Batch samplers: the order of the training data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    from pipeline.plugin.order import IndexedDocument, TokenIndex


class BatchSampler(Component):
    """The order in which the training text is read.

    The samples of a run are numbered from 0, over epochs, steps and ranks: step k of batches of B windows reads the
    samples k·B … k·B + B−1. So nothing is saved, and a resumed run reads on where it stopped.
    """

    once_an_epoch: ClassVar[bool] = False
    """Whether an epoch (`index.text.windows` samples) has each of its windows once; the contract suite checks."""

    @abstractmethod
    def offset(self, sample: int, seed: int, index: TokenIndex) -> int:
        """Where in the training text the window of a sample begins: from 0 to `index.tokens` − T − 1.

        It must depend on its arguments and the options alone, and take about constant time and memory, however
        long the text is: `index.text.shuffled(sample, seed)`, say.

        Args:
            sample: The sample's number in the run.
            seed: `train.seed`.
            index: The training text.
        """

    def sources(self, documents: Iterator[IndexedDocument]) -> Iterable[str]:
        """The source that each document belongs to, in their order. It is called before training begins, and makes
        `index.sources`. Not overridden, the documents are not read, and there are none.

        Raises:
            ValueError: these documents do not suit the options; says why.
        """
        return ()
