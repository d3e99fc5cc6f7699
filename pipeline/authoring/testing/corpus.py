"""The contract of a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.authoring.testing.toy import instance_of, keeps_no_state
from pipeline.plugin.components import Corpus


@keeps_no_state
def check_corpus(component: type[Corpus] | Corpus, root: Path) -> None:
    """Checks a corpus: the same documents each time, unique names, and text.

    Args:
        component: The corpus.
        root: The folder that it reads instead of data/raw, with the texts that it needs.
    """
    corpus = instance_of(component)

    def read() -> Iterable[tuple[str, str, str | None]]:
        for document in corpus.documents(root):
            text = document.text if isinstance(document.text, str) else "".join(document.text)
            yield document.name, text, document.split

    documents = list(read())
    assert documents, "a corpus must have at least one document"
    names = [name for name, _, _ in documents]
    assert len(names) == len(set(names)), "two documents have the same name"
    assert all(names), "every document must have a name"
    assert any(text.strip() for _, text, _ in documents), "at least one document must have text"
    for name, text, split in documents:
        text.encode("utf-8")  # raises if the text has lone surrogates
        assert split in (None, "train", "val", "test"), f"{name}: a split is train, val or test, not {split!r}"
    assert list(read()) == documents, "reading again must give the same documents in the same order"
