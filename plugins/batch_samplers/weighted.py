"""A mixture of sources, each with its share."""

import math
import re
from collections.abc import Iterator
from fnmatch import translate
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import BatchSampler, IndexedDocument, TokenIndex, hookimpl


class Weighted(BatchSampler):
    """Mixes sources by their shares; each is shuffled, and none of its windows repeats before all of it was read.

    However many samples were drawn, each source has had its share of them, but for at most a few windows.
    """

    name: ClassVar[str] = "weighted"

    shares: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)] = {"**": 1.0}
    """Shares, as parts of their sum, by folder (`books`), file (`wiki.jsonl`) or pattern (`*/notes-*.txt`, where *
    is any text) of the documents' names. Where several match, the longest decides; `**` stands for all the rest."""

    def sources(self, documents: Iterator[IndexedDocument]) -> Iterator[str]:
        patterns = sorted(self.shares, key=lambda pattern: (-len(pattern), pattern))
        expressions = {pattern: _expression(pattern) for pattern in patterns}
        unused = set(patterns)
        for document in documents:
            source = next((pattern for pattern in patterns if expressions[pattern].match(document.name)), None)
            if source is None:
                raise ValueError(f"shares has none for {document.name}: add its folder, or '**' for all the rest")
            unused.discard(source)
            yield source
        if unused:
            raise ValueError(
                f"shares: no document of the training split is left for {', '.join(map(repr, sorted(unused)))}: "
                "correct or remove it (split.by: document puts parts of all folders into it)"
            )

    def offset(self, sample: int, seed: int, index: TokenIndex) -> int:
        name, drawn = self._source(sample)
        return index.sources[name].shuffled(drawn, seed)

    def _source(self, sample: int) -> tuple[str, int]:
        """The source of a sample, and how many of the samples before it are of that source.

        The sources are halved again and again. Of the first k samples of a group, its left half has k times its
        share, rounded: so neither half ever strays from its share by more than half a sample.
        """
        names, sums = self._sums
        first, last = 0, len(names)
        while last - first > 1:
            middle = (first + last) // 2
            left, both = sums[middle] - sums[first], sums[last] - sums[first]
            before, after = ((2 * count * left + both) // (2 * both) for count in (sample, sample + 1))
            if after > before:
                sample, last = before, middle
            else:
                sample, first = sample - before, middle
        return names[first], sample

    @cached_property
    def _sums(self) -> tuple[list[str], list[int]]:
        """The sources' names, and the sums of the shares before each and of all, as whole numbers."""
        names = sorted(self.shares)
        shares = [Fraction(str(self.shares[name])) for name in names]
        unit = math.lcm(*(share.denominator for share in shares))
        return names, list(accumulate((int(share * unit) for share in shares), initial=0))


def _expression(pattern: str) -> re.Pattern[str]:
    """What the names of documents match: of the file itself, of those in the folder, or of a file's records."""
    stem = pattern.rstrip("/")
    return re.compile("|".join(translate(each) for each in (stem, f"{stem}/*", f"{stem}#*")))


@hookimpl
def register_batch_samplers() -> list[type[BatchSampler]]:
    return [Weighted]
