"""Corpora: the source of the training text."""

from __future__ import annotations

import codecs
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from pipeline.plugin.components.base import Component

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Attributes:
        name: Unique in the corpus. With `split.by: document` a hash of it assigns the document to train, val or
            test.
        text: The text, or an iterable of consecutive blocks of it if it may be too large for memory.
        split: "train", "val" or "test" if the corpus assigns the document itself, else None.
    """

    name: str
    text: str | Iterable[str]
    split: str | None = None


class Corpus(Component):
    """A source of text."""

    @abstractmethod
    def documents(self, root: Path) -> Iterator[Document]:
        """Yields the documents, always in the same order. `root` is data/raw, the folder of the user's texts."""

    def notes(self, root: Path) -> Iterable[str]:
        """Messages to print before the texts are read, one line each, such as the files that are left out."""
        return ()

    def packages(self) -> Iterable[str]:
        """Names of packages whose versions decide the texts: `pipeline lock` records them for DVC.

        The package that brings the corpus is recorded anyway.
        """
        return ()

    def file_text(self, path: Path, root: Path) -> Iterator[str]:
        """Yields the text of any file in blocks, as the corpus reads its texts (default: `decoded`).
        `pipeline score FILE` uses it.

        Args:
            path: The file, which may lie outside of `root`.
            root: The folder data/raw.

        Raises:
            OSError: the file cannot be read.
            ValueError: it cannot be read as text; the message has `path`.
        """
        with path.open("rb") as file:
            yield from self.decoded(iter(partial(file.read, _BLOCK), b""), str(path))

    def decoded(self, data: Iterable[bytes], name: str) -> Iterator[str]:
        """Decodes a plain text as the corpus decodes its texts (default: UTF-8). `pipeline score -` uses it.

        Args:
            data: The bytes of the file, in blocks.
            name: The name of the file, for error messages.

        Raises:
            ValueError: the bytes cannot be decoded; the message has `name` and the offset of the first bad byte.
        """
        decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
        for block in chain(data, [b""]):
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # error.object is the decoder's remainder of the previous block, followed by this block.
                position = offset + len(block) - len(error.object) + error.start
                raise ValueError(f"{name} is not UTF-8 at byte {position:,}: convert it") from None
            yield text if offset else text.removeprefix("\ufeff")
            offset += len(block)
