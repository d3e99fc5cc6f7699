"""The documents of a corpus: read with checks, and written as tokens."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.core.console import say
from pipeline.core.errors import DataError, PluginError, explain_os_error
from pipeline.data.encode import Encoded, TextDigest, parts_of
from pipeline.data.joined import Ids
from pipeline.data.token_writer import TokenWriter
from pipeline.data.tokenizer import TokenIds, Tokenizer
from pipeline.plugin.calls import calling, guarded_items, label
from pipeline.plugin.chat import ChatTemplate
from pipeline.plugin.components import Corpus, CorpusSource, Document, Message, Part

if TYPE_CHECKING:
    from pipeline.core.paths import Paths

T = TypeVar("T")
Documents = Callable[[], Iterator[Document]]


class UnreadableError(DataError):
    """A text cannot be read.

    Attributes:
        corpus: The name of the corpus.
        fault: The corpus's own message.
    """

    def __init__(self, corpus: str, fault: str) -> None:
        super().__init__(corpus, fault)
        self.corpus, self.fault = corpus, fault

    def __str__(self) -> str:
        return f"the corpus {self.corpus}: {' '.join(self.fault.split())}"


def read_corpus(corpus: Corpus, paths: Paths, template: ChatTemplate | None = None) -> Iterator[Document]:
    """The documents of the corpus, checked; `template` makes the parts of conversations.

    Raises:
        PluginError: the corpus yields something else than documents.
        DataError: a name is empty, repeated or not UTF-8, or a text cannot be read.
    """
    names: set[str] = set()
    for document in _checked(corpus, paths, template, lambda: corpus.documents(paths.raw)):
        if document.name in names:
            raise repeated(corpus, document.name)
        names.add(document.name)
        yield document


def without_notes(documents: Documents) -> Iterator[Document]:
    """The documents, without the notes that a corpus prints about them, if they are read again later."""
    found = documents()
    while True:
        with redirect_stdout(StringIO()):
            document = next(found, None)
        if document is None:
            return
        yield document


def repeated(corpus: Corpus, name: str) -> DataError:
    """The error for a name that two documents have."""
    return DataError(f"the corpus {corpus.name} has two documents named {name!r}: names must be unique")


def read_source(
    corpus: Corpus,
    paths: Paths,
    source: CorpusSource,
    template: ChatTemplate | None = None,
    report: Callable[[Any], None] = lambda value: None,
) -> Iterator[Document]:
    """The documents of a source, checked, except that their names are unique. `report` is given what `Corpus.read`
    returns.

    Raises:
        PluginError, DataError: as in `read_corpus`.
    """

    def read() -> Generator[Document, None, None]:
        report((yield from corpus.read(paths.raw, source)))

    return _checked(corpus, paths, template, read)


def write_documents(
    writer: TokenWriter,
    encoded: Iterable[Encoded],
    end: TokenIds,
    *,
    continues: bool = False,
    advance: Callable[[int], None] = lambda characters: None,
) -> bool:
    """Writes documents as tokens.

    Args:
        writer: Where to.
        encoded: The pieces of the documents and their ids (see `pipeline.data.encode`).
        end: The ids after a document that is not empty.
        continues: Whether the document continues in the next shard; it is the only one then.
        advance: Called with the number of characters of each piece.

    Returns:
        Whether there is a text that is not blank.
    """
    digest, found = TextDigest(), False
    for piece, ids, learn in encoded:
        writer.write(ids, learn)
        digest.update(piece.text)
        if piece.last:
            if digest.text_bytes and not continues:
                writer.write(end, None if learn is None else learn[-1:].repeat(len(end)))
            document = piece.document
            writer.end_document(document.name, digest.text_bytes, document.split, digest.value, continues)
            found = found or digest.value is not None
            digest = TextDigest()
        advance(len(piece.text))
    return found


def check_tokenizer(corpus: Corpus, paths: Paths, tokenizer: Tokenizer) -> None:
    """Prints what the corpus notes about the tokenizer, if it has ids that others made.

    Raises:
        UnreadableError: another tokenizer made them.
    """
    for note in items(
        corpus, paths, lambda: corpus.check_tokenizer(paths.raw, tokenizer.name, tokenizer.end_of_text)
    ):
        say(f"note: {note}")


def no_text(corpus: Corpus, paths: Paths) -> DataError:
    """The error for a corpus whose documents are all blank."""
    where = f"put texts into {paths.shown(paths.raw)}" if corpus.name == "files" else "see its options"
    return DataError(f"the corpus {corpus.name} holds no text: {where}")


def end_ids(end_of_text: int, wanted: bool) -> TokenIds:
    """The ids to write after a document."""
    return np.array([end_of_text] if wanted else [], dtype=np.uint32)


def items(corpus: Corpus, paths: Paths, made: Callable[[], Iterable[T]]) -> Iterator[T]:
    """The items that a method of the corpus gives.

    Raises:
        UnreadableError: for its OSErrors and ValueErrors; paths in them are relative to the project.
        PluginError: for all other errors.
    """

    def unreadable(message: str) -> DataError:
        return UnreadableError(corpus.name, message.replace(f"{paths.root}/", ""))

    try:
        yield from guarded_items(corpus, made, passes=(OSError, ValueError))
    except OSError as error:
        raise unreadable(explain_os_error(error)) from error
    except ValueError as error:
        with calling(corpus):
            if type(error) is not ValueError:  # a bug, not a message for users
                raise
        raise unreadable(str(error)) from error


def _checked(
    corpus: Corpus, paths: Paths, template: ChatTemplate | None, documents: Callable[[], Iterable[Document]]
) -> Iterator[Document]:
    for document in items(corpus, paths, documents):
        if not isinstance(document, Document) or not isinstance(document.name, str):
            raise PluginError(f"{label(corpus)} must yield Document(name, text), not {type(document).__name__}")
        if document.split not in (None, "train", "val", "test"):
            raise PluginError(
                f"{label(corpus)}: {document.name!r} has the split {document.split!r}, not train, val or test"
            )
        if not document.name:
            raise DataError(f"{label(corpus)} has a document without a name")
        if document.name != document.name.encode(errors="ignore").decode():
            raise DataError(f"the corpus {corpus.name}: the name {document.name!r} is not UTF-8: rename it")
        given = [bool(document.text), document.ids is not None, document.messages is not None]
        if sum(given) > 1:
            raise PluginError(f"{label(corpus)}: {document.name!r} has more than one of text, ids and messages")
        if document.ids is not None:
            yield replace(document, ids=_ids(corpus, paths, document))
        elif document.messages is not None:
            yield replace(document, text=_conversation(corpus, document, template), messages=None)
        else:
            yield replace(document, text=_text(corpus, paths, document))


def _conversation(corpus: Corpus, document: Document, template: ChatTemplate | None) -> list[Part]:
    """The parts of a conversation."""
    for message in document.messages or ():
        if not (
            isinstance(message, Message) and isinstance(message.role, str) and isinstance(message.content, str)
        ):
            raise PluginError(
                f"{label(corpus)}: {document.name!r} must have messages Message(role, content), not {message!r}"
            )
    if template is None:
        raise PluginError(f"{label(corpus)} yields conversations: set chat: ClassVar[bool] = True in its class")
    try:
        parts = template.parts(document.messages or ())
    except ValueError as error:
        raise DataError(f"the conversation {document.name!r} cannot be used: {error}") from None
    for part in parts:
        _check_utf8(corpus, document, part.text)
    return parts


def _check_utf8(corpus: Corpus, document: Document, text: str) -> None:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{label(corpus)}: the text of {document.name!r} holds a lone surrogate, "
            f'{text[error.start]!r}: decode it with errors="replace"'
        ) from None


def _text(corpus: Corpus, paths: Paths, document: Document) -> str | Iterator[str] | list[Part]:
    """A document's text, blocks of text or parts, each checked."""

    def checked(text: Any) -> str:
        if not isinstance(text, str):
            raise PluginError(
                f"{label(corpus)}: the text of {document.name!r} must be str, or an iterable of str, not "
                f"{type(text).__name__}"
            )
        _check_utf8(corpus, document, text)
        return text

    if (parts := parts_of(document)) is not None:
        for part in parts:
            if not isinstance(part, Part):
                raise PluginError(
                    f"{label(corpus)}: the text of {document.name!r} mixes Part and {type(part).__name__}"
                )
            checked(part.text)
        return list(parts)
    if isinstance(document.text, str | bytes) or not isinstance(document.text, Iterable):
        return checked(document.text)
    return map(checked, items(corpus, paths, lambda: document.text))


def _ids(corpus: Corpus, paths: Paths, document: Document) -> Iterator[Ids]:
    """A document's blocks of ids, each checked."""
    for block in items(corpus, paths, lambda: document.ids or ()):
        if not (isinstance(block, np.ndarray) and block.ndim == 1 and block.dtype.kind in "iu"):
            kind = f"{block.dtype} {block.shape}" if isinstance(block, np.ndarray) else type(block).__name__
            raise PluginError(
                f"{label(corpus)}: the ids of {document.name!r} must be an iterable of one-dimensional arrays of "
                f"integers, not of {kind}"
            )
        yield block
