"""Corpora: where the text comes from."""

from __future__ import annotations

import codecs
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pipeline.plugin.components.base import Component


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        name: Unique in the corpus; it decides the document's side when documents are split.
        text: The text, or its consecutive blocks when it may be too large for memory.
        split: "train", "val" or "test" where the corpus itself says so.
    """

    name: str
    text: str | Iterable[str]
    split: str | None = None


class Corpus(Component):
    """Where the text comes from."""

    @abstractmethod
    def documents(self, root: Path) -> Iterator[Document]:
        """The documents, always in the same order; `root` is the folder of the person's own texts, data/raw."""

    def notes(self, root: Path) -> Iterable[str]:
        """What a person should know before the texts are read, a line each: which files are left out, say."""
        return ()

    def packages(self) -> Iterable[str]:
        """Names of packages whose versions decide the texts: `pipeline lock` records them for DVC.

        The package that brings the corpus is recorded anyway.
        """
        return ()

    def decoded(self, data: Iterable[bytes], name: str) -> Iterator[str]:
        """A plain text in blocks, read as the corpus reads its own: what `pipeline score` uses. Here: UTF-8.

        Raises:
            ValueError: bytes that are no text; says which, and `name`.
        """
        decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
        for block in chain(data, [b""]):
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # error.object is what the decoder held back from the last block, then this block.
                place = offset + len(block) - len(error.object) + error.start
                raise ValueError(f"{name} is not UTF-8 at byte {place:,}: convert it") from None
            yield text if offset else text.removeprefix("\ufeff")
            offset += len(block)
