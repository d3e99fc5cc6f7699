"""The contract of a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.authoring.testing.toy import instance_of, keeps_no_state
from pipeline.plugin.components import Corpus, CorpusSource, Document

_RANGES = 3
"""Each source is divided into about so many ranges."""


@keeps_no_state
def check_corpus(component: type[Corpus] | Corpus, root: Path) -> None:
    """Checks a corpus: the same documents each time, with unique names and text or ids, also by source and range.

    Args:
        component: The corpus.
        root: The folder that it reads instead of data/raw, with the texts that it needs.
    """
    corpus = instance_of(component)
    documents = list(_read(corpus.documents(root)))
    assert documents, "a corpus must have at least one document"
    names = [name for name, _, _, _ in documents]
    assert len(names) == len(set(names)), "two documents have the same name"
    assert all(names), "every document must have a name"
    assert any(text.strip() or ids for _, text, ids, _ in documents), "at least one document must have text or ids"
    for name, text, ids, split in documents:
        assert not (text and ids), f"{name}: a document has a text or ids, not both"
        text.encode("utf-8")  # raises if the text has lone surrogates
        assert split in (None, "train", "val", "test"), f"{name}: a split is train, val or test, not {split!r}"
    assert list(_read(corpus.documents(root))) == documents, (
        "reading again must give the same documents in the same order"
    )
    if (sources := corpus.sources(root)) is not None:
        _check_sources(corpus, root, list(sources), documents)


Read = tuple[str, str, list[int], str | None]
"""The name, the text, the ids and the split of a document."""


def _read(documents: Iterable[Document]) -> Iterator[Read]:
    """The documents, with the parts of each joined."""
    parts, ids, continues = list[str](), list[int](), False
    for document in documents:
        parts += [document.text] if isinstance(document.text, str) else document.text
        ids += _ids(document)
        continues = document.continues
        if not continues:
            yield document.name, "".join(parts), ids, document.split
            parts, ids = [], []
    assert not continues, "the last document of a file continues"


def _ids(document: Document) -> Iterator[int]:
    for block in document.ids or ():
        assert isinstance(block, np.ndarray), f"{document.name}: ids must be arrays, not {type(block).__name__}"
        assert block.ndim == 1, f"{document.name}: an array of ids has one dimension, not {block.ndim}"
        assert block.dtype.kind in "iu", f"{document.name}: ids must be integers, not {block.dtype}"
        yield from block.tolist()


def _check_sources(corpus: Corpus, root: Path, sources: list[CorpusSource], documents: list[Read]) -> None:
    assert list(corpus.sources(root) or ()) == sources, "sources must be the same each time, in the same order"
    names = [source.name for source in sources]
    assert len(names) == len(set(names)), "two sources have the same name"
    read = [list(_read(corpus.read(root, source))) for source in sources]
    assert [document for each in read for document in each] == documents, (
        "the documents of all sources in order must be those of `documents`"
    )
    for source, whole in zip(sources, read, strict=True):
        ranges, number = list[CorpusSource](), 0
        for part in corpus.divide(root, source, max(1, source.bytes // _RANGES)):
            ranges.append(replace(part, first_record=number))
            number += corpus.count_records(root, part)
        cuts = [(part.path, part.start) for part in [*ranges[1:], replace(source, start=source.end)]]
        assert [(part.path, part.end) for part in ranges] == cuts, (
            f"the ranges of {source.name} must follow each other and cover it"
        )
        assert len({part.name for part in ranges}) == len(ranges), f"two ranges of {source.name} have the same name"
        parts = chain.from_iterable(corpus.read(root, part) for part in ranges)
        assert list(_read(parts)) == whole, f"the ranges of {source.name} must give its documents"
