"""The contract of a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.authoring.testing.toy import instance_of, keeps_no_state
from pipeline.plugin.components import Corpus, Document


@keeps_no_state
def check_corpus(component: type[Corpus] | Corpus, root: Path) -> None:
    """Checks a corpus: the same documents each time, unique names, and text or ids.

    Args:
        component: The corpus.
        root: The folder that it reads instead of data/raw, with the texts that it needs.
    """
    corpus = instance_of(component)

    def read() -> Iterable[tuple[str, str, list[int], str | None]]:
        for document in corpus.documents(root):
            text = document.text if isinstance(document.text, str) else "".join(document.text)
            yield document.name, text, list(_ids(document)), document.split

    documents = list(read())
    assert documents, "a corpus must have at least one document"
    names = [name for name, _, _, _ in documents]
    assert len(names) == len(set(names)), "two documents have the same name"
    assert all(names), "every document must have a name"
    assert any(text.strip() or ids for _, text, ids, _ in documents), "at least one document must have text or ids"
    for name, text, ids, split in documents:
        assert not (text and ids), f"{name}: a document has a text or ids, not both"
        text.encode("utf-8")  # raises if the text has lone surrogates
        assert split in (None, "train", "val", "test"), f"{name}: a split is train, val or test, not {split!r}"
    assert list(read()) == documents, "reading again must give the same documents in the same order"


def _ids(document: Document) -> Iterable[int]:
    for block in document.ids or ():
        assert isinstance(block, np.ndarray), f"{document.name}: ids must be arrays, not {type(block).__name__}"
        assert block.ndim == 1, f"{document.name}: an array of ids has one dimension, not {block.ndim}"
        assert block.dtype.kind in "iu", f"{document.name}: ids must be integers, not {block.dtype}"
        yield from block.tolist()
