"""Batch samplers: the order of the training data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    from pipeline.plugin.order import IndexedDocument, TokenIndex


class BatchSampler(Component):
    """The order in which training windows are read from the text.

    The samples of a run are numbered from 0, across epochs, steps and ranks: with B windows per batch, step k reads
    the samples k·B … k·B + B − 1. The order is a pure function of the sample's number: it needs no saved state, and
    a resumed run continues at the right sample.
    """

    once_an_epoch: ClassVar[bool] = False
    """Whether an epoch (`index.text.windows` samples) reads each window exactly once. The contract suite checks
    this."""

    @abstractmethod
    def offset(self, sample: int, seed: int, index: TokenIndex) -> int:
        """The offset in the training text at which the window of a sample begins, from 0 to `index.tokens` − T − 1.

        The result must depend only on the arguments and the options, and take (nearly) constant time and memory for
        a text of any length. An example is `index.text.shuffled(sample, seed)`.

        Args:
            sample: The number of the sample in the run.
            seed: `train.seed`.
            index: The training text.

        It may also have a parameter `total_samples`: how many samples the run reads, an extension
        (`train.extension`) not included, whose samples have higher numbers.
        """

    def sources(self, documents: Iterator[IndexedDocument]) -> Iterable[str]:
        """The name of the source of each document, in the order of the documents.

        It is called once before training, to build `index.sources`. If it is not overridden, the documents are not
        read, and `index.sources` is empty.

        Raises:
            ValueError: the options do not fit these documents; the message says why.
        """
        return ()
