"""A mixture of sources in given proportions."""

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
    """Mixes sources in the proportions `shares`. Each source is shuffled and repeats only after all of it was read.

    After any number of samples, the number from each source is its share of them, up to a few windows.
    """

    name: ClassVar[str] = "weighted"

    shares: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)] = {"**": 1.0}
    """The weight of each source, relative to their sum. A source is a folder (`books`), a file (`wiki.jsonl`) or a
    pattern of document names (`*/notes-*.txt`; * matches any text). If several match a document, the longest one is
    used; `**` matches all other documents."""

    def sources(self, documents: Iterator[IndexedDocument]) -> Iterator[str]:
        patterns = sorted(self.shares, key=lambda pattern: (-len(pattern), pattern))
        expressions = {pattern: _expression(pattern) for pattern in patterns}
        unused = set(patterns)
        for document in documents:
            source = next((pattern for pattern in patterns if expressions[pattern].match(document.name)), None)
            if source is None:
                raise ValueError(
                    f"shares: no entry matches {document.name}: add its folder, or '**' for all other documents"
                )
            unused.discard(source)
            yield source
        if unused:
            raise ValueError(
                f"shares: no document of the training split matches {', '.join(map(repr, sorted(unused)))}: "
                "correct or remove the entry (with split.by: document, the training split has parts of all folders)"
            )

    def offset(self, sample: int, seed: int, index: TokenIndex) -> int:
        name, drawn = self._source(sample)
        return index.sources[name].shuffled(drawn, seed)

    def _source(self, sample: int) -> tuple[str, int]:
        """The source of a sample, and the number of earlier samples from that source.

        The sources are divided into halves recursively. Of the first k samples of a group, the left half gets k
        times its share, rounded, so that neither half is ever more than half a sample away from its share.
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
        """The names of the sources, and the cumulative sums of their shares as integers, starting with 0."""
        names = sorted(self.shares)
        shares = [Fraction(str(self.shares[name])) for name in names]
        unit = math.lcm(*(share.denominator for share in shares))
        return names, list(accumulate((int(share * unit) for share in shares), initial=0))


def _expression(pattern: str) -> re.Pattern[str]:
    """A regular expression for a pattern: matches the file itself, files in the folder, or records of the file."""
    stem = pattern.rstrip("/")
    return re.compile("|".join(translate(each) for each in (stem, f"{stem}/*", f"{stem}#*")))


@hookimpl
def register_batch_samplers() -> list[type[BatchSampler]]:
    return [Weighted]
