"""The beginning of the corpus, tokenized and split in a temporary folder as the stages do it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.core.console import listed, say
from pipeline.core.paths import Paths
from pipeline.data.encode import blocks_of, parts_of
from pipeline.data.tokens import TokenFolder
from pipeline.plugin.components import Document
from pipeline.plugin.faults import all_of
from pipeline.split import stage as split
from pipeline.tokenize import stage as tokenize
from pipeline.tokenize.documents import Documents, UnreadableError, items, read_corpus, read_source
from pipeline.tokenize.tokenizers import chat_template

if TYPE_CHECKING:
    from pipeline.data.joined import Ids
    from pipeline.params.params import Params

_READ_AT_MOST = 32 << 20
"""Characters; of a larger corpus only the beginning is read."""
_SOURCES = 1000
"""Files; of more, some between the first and the last are looked at."""
_FEW = 100
"""Of so few documents, those that are held out are named."""
_PER_ID = 4
"""Characters, about."""

Block = TypeVar("Block", str, "Ids")


@dataclass(frozen=True)
class Sample:
    """What was read.

    Attributes:
        splits: The splits, in the temporary folder.
        documents, bytes: Of the text that was read.
        cut: Whether the corpus is longer.
    """

    splits: TokenFolder
    documents: int
    bytes: int
    cut: bool


def held_out(sample: Sample, by: str) -> str:
    """The first documents of val and of test, such as "val: a part of c.txt, d.txt; test: e.txt and 8 more".

    It is empty if only a part of the corpus was read, or it is a single document, or chance chose among many.
    """
    if sample.cut or sample.documents == 1 or (by == "document" and sample.documents > _FEW):
        return ""
    names = {split: [each.name for each in sample.splits.documents(split)] for split in sample.splits.names}
    of = Counter(chain.from_iterable(names.values()))

    def told(split: str) -> str:
        return listed(["a part of " * (of[each] > 1) + each for each in names[split]], most=3)

    return "; ".join(f"{split}: {told(split)}" for split in names if split != "train")


class _Scratch(Paths):
    """The paths of the project, with tokens and splits in a temporary folder."""

    def __init__(self, root: Path, folder: Path) -> None:
        super().__init__(root)
        self.tokens, self.splits = folder / "tokens", folder / "splits"

    def shown(self, path: Path) -> str:
        return path.name


@dataclass
class Beginning:
    """The first _READ_AT_MOST characters of the corpus; `cut` is True if the corpus is longer."""

    documents: Documents
    cut: bool = False
    left: int = 0

    def __call__(self) -> Iterator[Document]:
        self.left = _READ_AT_MOST
        for document in self.documents():
            if self.left <= 0:
                self.cut = True
                return
            if document.ids is not None:
                yield replace(document, ids=tuple(self._limited(document.ids, _PER_ID)))
                continue
            if (parts := parts_of(document)) is not None:
                self.left -= sum(len(part.text) for part in parts)
                yield document
                continue
            yield replace(document, text=tuple(self._limited(blocks_of(document), 1)))

    def _limited(self, blocks: Iterable[Block], characters: int) -> Iterator[Block]:
        """The blocks, each item of which counts as so many characters."""
        for block in blocks:
            if self.left <= 0:
                self.cut = True
                return
            self.left -= characters * len(block)
            yield block


def tokenize_sample(params: Params, paths: Paths, folder: Path, said: set[str] | None = None) -> Sample:
    """Tokenizes and splits the corpus (only the beginning of a large one) into `folder`, and prints their notes,
    except those in `said`, to which it adds them."""
    scratch, output = _Scratch(paths.root, folder), io.StringIO()
    beginning = beginning_of_corpus(params, paths)
    corpus = tokenize.build_corpus(params, paths)
    try:
        with redirect_stdout(output):
            documents = list(beginning())  # which is read twice, for the tokenizer and to encode it
            tokenize.write_tokens(params, scratch, corpus, lambda: iter(documents))
            if beginning.cut:  # whether documents leave a side empty cannot be told from a part: split by position
                by_position = params.split.model_copy(update={"by": "position", "unit": "tokens"})
                params = params.model_copy(update={"split": by_position})
            split.write_splits(params, scratch, baseline=False)
    finally:
        said = set() if said is None else said
        for line in output.getvalue().splitlines():
            if line.startswith(("note:", "removed")) and line not in said:
                said.add(line)
                say(line)
    read = TokenFolder(scratch.tokens, "").meta["files"]["tokens"]
    return Sample(TokenFolder(scratch.splits, ""), read["documents"], read["bytes"], beginning.cut)


def check_beginnings(params: Params, paths: Paths) -> int:
    """Reads the beginning of the sources of a large corpus, at most `_SOURCES` of them; returns their number.

    Raises:
        DataError: some cannot be read.
    """
    corpus = tokenize.build_corpus(params, paths)
    every = [each for each in items(corpus, paths, lambda: corpus.sources(paths.raw) or ()) if not each.version]
    template = chat_template(params.tokenize.tokenizer, corpus, paths)
    chosen = every[:: -(-len(every) // _SOURCES) or 1]
    faults = list[Exception]()
    for source in chosen:
        try:
            for document in islice(read_source(corpus, paths, source, template), 1):
                blocks: Iterable[object] = document.text if document.ids is None else document.ids
                for _ in islice(blocks, 1):
                    pass
        except UnreadableError as error:
            faults.append(ValueError(error.fault))
    if faults:
        files = [source.path.removeprefix(f"{paths.root}/") for source in chosen]  # as the messages have it
        raise UnreadableError(corpus.name, str(all_of(faults, Path(paths.shown(paths.raw)), files)))
    return len(chosen)


def beginning_of_corpus(params: Params, paths: Paths) -> Beginning:
    """The beginning of the corpus that the params choose."""
    corpus = tokenize.build_corpus(params, paths)
    template = chat_template(params.tokenize.tokenizer, corpus, paths)
    return Beginning(lambda: read_corpus(corpus, paths, template))
