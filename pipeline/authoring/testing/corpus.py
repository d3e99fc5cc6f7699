"""The contract of a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.authoring.testing.toy import instance_of, keeps_no_state
from pipeline.plugin.components import ROLES, Corpus, CorpusSource, Document, Message, Part
from pipeline.plugin.cuts import word_end

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
    for document in documents:
        yield document.name, _text(document), list(_ids(document)), document.split


def _text(document: Document) -> str:
    """A document's text: that of its blocks, parts or messages."""
    if isinstance(document.text, str) and document.messages is None:
        return document.text
    blocks = list[str]()
    for part in document.text if document.messages is None else document.messages:
        blocks.append(part.content if isinstance(part, Message) else part.text if isinstance(part, Part) else part)
        if isinstance(part, Message):
            assert part.role in ROLES, f"{document.name}: a role is one of {', '.join(ROLES)}, not {part.role!r}"
    return "".join(blocks)


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
        assert list(_joined(corpus, root, ranges)) == whole, f"the ranges of {source.name} must give its documents"


def _joined(corpus: Corpus, root: Path, ranges: Iterable[CorpusSource]) -> Iterator[Read]:
    """The documents of consecutive ranges."""
    parts = list[str]()
    for source in ranges:
        found = list(_read(corpus.read(root, source)))
        assert len(found) == 1 or not source.continues, f"{source.name} continues: it must have one document"
        for name, text, ids, split in found:
            if source.continues:
                parts.append(text)
                assert word_end(text + " ", len(text)) == len(text), (
                    f"{source.name} continues: it must end where `word_end` allows it, not in {text[-20:]!r}"
                )
            else:
                yield name, "".join(parts) + text, ids, split
                parts.clear()
    assert not parts, "the last range of a file must not continue"
