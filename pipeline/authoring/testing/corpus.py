"""The contract of a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.authoring.testing.toy import instance_of
from pipeline.plugin.components import Corpus


def check_corpus(component: type[Corpus] | Corpus, root: Path) -> None:
    """The same documents each time, each name once, and text in each.

    Args:
        component: The corpus.
        root: What data/raw is for it, with whatever texts it needs.
    """
    corpus = instance_of(component)

    def read() -> Iterable[tuple[str, str, str | None]]:
        for document in corpus.documents(root):
            text = document.text if isinstance(document.text, str) else "".join(document.text)
            yield document.name, text, document.split

    documents = list(read())
    assert documents, "a corpus must have a document"
    names = [name for name, _, _ in documents]
    assert len(names) == len(set(names)), "two documents have the same name"
    assert all(names), "each document needs a name"
    assert any(text.strip() for _, text, _ in documents), "there must be text in them"
    for name, text, split in documents:
        text.encode("utf-8")  # raises where a text holds lone surrogates
        assert split in (None, "train", "val", "test"), f"{name}: a split is train, val or test, not {split!r}"
    assert list(read()) == documents, "reading again must give the same documents in the same order"
