"""Corpora: the source of the training text."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 1 << 20

ROLES = ("system", "user", "assistant", "tool")
"""Who speaks in a conversation."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who speaks, one of `ROLES`.
        content: The text.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Part:
    """A part of a document's text.

    Attributes:
        text: The text, or the name of a special token.
        learn: Whether the model learns to write it. What is not learnt is only read: it has no loss.
        special: Whether `text` names a special token of the tokenizer.
    """

    text: str
    learn: bool = True
    special: bool = False


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Attributes:
        name: Unique in the corpus. With `split.by: document` a hash of it assigns the document to train, val or
            test.
        text: The text; an iterable of consecutive blocks of it, if it may be too large for memory; or a list of
            parts.
        split: "train", "val" or "test" if the corpus assigns the document itself, else None.
        ids: Instead of a text, its token ids without end-of-text: an iterable of consecutive one-dimensional arrays
            of integers. `tokenize.tokenizer` must name the tokenizer that made them.
        messages: Instead of a text, a conversation. The chat template of the tokenizer makes its parts: what the
            assistant says is learnt.
    """

    name: str
    text: str | Iterable[str] | Sequence[Part] = ""
    split: str | None = None
    ids: Iterable[np.ndarray[Any, Any]] | None = None
    messages: Sequence[Message] | None = None


@dataclass(frozen=True)
class CorpusSource:
    """A part of a corpus that can be read independently of the others: a file, or a range of one.

    Attributes:
        name: Unique in the corpus, and the same in each run, such as the path below data/raw.
        path: The file.
        size: The size of the file in bytes.
        start, end: The range of bytes: all of them, unless `Corpus.divide` made the source.
        first_record: The number of the file's records before the range.
        continues: Whether its only document continues in the next range, under the same name.
        beside: Further files that decide the documents, such as an index.
        version: What identifies the content of a file on another machine, such as its etag; empty for a file on
            this one, whose bytes are read to notice a change.
    """

    name: str
    path: str
    size: int
    start: int
    end: int
    first_record: int = 0
    continues: bool = False
    beside: tuple[str, ...] = ()
    version: str = ""

    @classmethod
    def of_file(cls, path: Path, root: Path) -> CorpusSource:
        """A whole file below `root`."""
        size = path.stat().st_size
        return cls(path.relative_to(root).as_posix(), str(path), size, 0, size)

    @property
    def bytes(self) -> int:
        """The number of bytes to read."""
        return self.end - self.start


class Corpus(Component):
    """A source of text: `documents`, or `sources` and `read`, or both.

    A corpus with `sources` is tokenized by several processes, and after a change only where it changed.

    Attributes:
        chat: Whether documents have `messages`: then a tokenizer without a chat template gets ChatML's.
    """

    chat: ClassVar[bool] = False

    def documents(self, root: Path) -> Iterator[Document]:
        """Yields the documents, always in the same order (default: those of all sources).

        `root` is data/raw, the folder of the user's texts.
        """
        reports = []
        for source in self.sources(root) or ():
            reports.append((yield from self.read(root, source)))
        for line in self.end_notes(reports):
            print(f"note: {self.name}: {line}")

    def sources(self, root: Path) -> Iterable[CorpusSource] | None:
        """The parts that the corpus consists of, always in the same order; None (default) if it has none.

        `read` of all of them gives `documents`.
        """
        return None

    def read(self, root: Path, source: CorpusSource) -> Generator[Document, None, Any]:
        """Yields the documents of a source. It may return a JSON value for `end_notes`.

        Processes call it in any order. If it raises ValueError or OSError, the others are still read, to report
        all errors at once.
        """
        raise NotImplementedError

    def divide(self, root: Path, source: CorpusSource, size: int) -> Iterable[CorpusSource]:
        """Divides a file into ranges of about `size` bytes (default: does not).

        `read` of all of them must give the documents of the file. A range that `continues` must end where
        `word_end` allows it, so that the ids stay the same.
        """
        return [source]

    def count_records(self, root: Path, source: CorpusSource) -> int:
        """The number of records in a range, by which `first_record` of the ranges after it is set (default: 0)."""
        return 0

    def digest(self, root: Path, source: CorpusSource) -> str:
        """A digest of what decides the documents of a source, beside the options (default: of its bytes
        and of the files beside it).

        Raises:
            ValueError: the file has another size than when it was listed.
        """
        digest, left = hashlib.sha256(), source.bytes
        with open(source.path, "rb") as file:
            if os.fstat(file.fileno()).st_size != source.size:  # `read` of a whole file would read another text
                raise ValueError(f"{source.path} changed while it was read: run `pipeline tokenize` again")
            file.seek(source.start)
            while block := file.read(min(_BLOCK, left)):
                digest.update(block)
                left -= len(block)
        for path in source.beside:
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
        return digest.hexdigest()

    def end_notes(self, reports: Iterable[Any]) -> Iterable[str]:
        """Messages to print after all texts were read, one line each (default: none).

        Args:
            reports: What `read` returned, for each source in order.
        """
        return ()

    def notes(self, root: Path) -> Iterable[str]:
        """Messages to print before the texts are read, one line each, such as the files that are left out."""
        return ()

    def record(self, root: Path) -> Iterable[str]:
        """Records in a file below data/ what DVC cannot see, such as the names and etags of texts on a server
        (default: nothing). `pipeline lock` calls it and prints what it yields, one line for each change."""
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
        return ("jinja2",) if self.chat else ()  # it renders chat templates

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
