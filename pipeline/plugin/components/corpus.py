"""Corpora: the source of the training text."""

from __future__ import annotations

import codecs
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Attributes:
        name: Unique in the corpus. With `split.by: document` a hash of it assigns the document to train, val or
            test.
        text: The text, or an iterable of consecutive blocks of it if it may be too large for memory.
        split: "train", "val" or "test" if the corpus assigns the document itself, else None.
        ids: Instead of a text, its token ids: an iterable of consecutive one-dimensional arrays of integers, without
            the end-of-text id. `tokenize.tokenizer` must name the tokenizer that made them.
    """

    name: str
    text: str | Iterable[str] = ""
    split: str | None = None
    ids: Iterable[np.ndarray[Any, Any]] | None = None


class Corpus(Component):
    """A source of text."""

    @abstractmethod
    def documents(self, root: Path) -> Iterator[Document]:
        """Yields the documents, always in the same order. `root` is data/raw, the folder of the user's texts."""

    def notes(self, root: Path) -> Iterable[str]:
        """Messages to print before the texts are read, one line each, such as the files that are left out."""
        return ()

    def check_tokenizer(self, root: Path, name: str, end_of_text: int) -> Iterable[str]:
        """Compares the tokenizer of params.yaml with what is known of the one that made the ids (`Document.ids`).

        Called before the documents are read. That the ids of the first texts are those of the tokenizer is checked
        anyway.

        Args:
            root: The folder data/raw.
            name: The tokenizer's name: that of a tiktoken encoding or of a file, or "bpe", "characters", "bytes".
            end_of_text: The id that ends a document.

        Returns:
            Messages to print, one line each.

        Raises:
            ValueError: another tokenizer made the ids.
        """
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
