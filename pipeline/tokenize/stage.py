"""The tokenize stage: builds or loads the tokenizer and encodes the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.core.console import Progress, fact, say
from pipeline.core.errors import DataError, PluginError, explain_os_error
from pipeline.core.params_diff import effective
from pipeline.core.processor import cores
from pipeline.core.publication import published_folder
from pipeline.core.symlinks import check_symlinks
from pipeline.data.encode import TextDigest, encode, pieces
from pipeline.data.patterns import GPT2_PATTERN, ONE_CHARACTER
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokenizer_file import from_file
from pipeline.data.tokens import TokenWriter, finish_folder
from pipeline.plugin.calls import calling, guarded_items, label
from pipeline.plugin.components import Corpus, Document
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry
from pipeline.tokenize.vocabulary import Sample, characters, published, raw_bytes, train_bpe

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import Params, TokenizeParams, TokenizerParams

KINDS = ["corpora"]

T = TypeVar("T")
Documents = Callable[[], Iterator[Document]]


def run(params: Params, paths: Paths) -> None:
    """Reads the corpus and writes artifacts/tokens: tokens.bin, its index, the tokenizer, meta.json.

    Raises:
        ParamsError, PluginError, DataError: the corpus or the tokenizer cannot be used.
    """
    check_symlinks(paths.root / "data")
    corpus = build_corpus(params, paths)
    write_tokens(params, paths, corpus, lambda: read_corpus(corpus, paths))


def build_corpus(params: Params, paths: Paths) -> Corpus:
    """Builds the corpus that params.yaml chooses."""
    chosen = params.tokenize.corpus
    registry = Registry.load(paths.plugins, KINDS)
    corpus: Corpus = registry.build("corpora", chosen.name, chosen.options, "tokenize.corpus")
    return corpus


def record_corpus(params: Params, paths: Paths) -> Iterator[str]:
    """Records texts on another machine below data/, as `Corpus.record` does; yields a line for each change."""
    corpus = build_corpus(params, paths)
    yield from _items(corpus, paths, lambda: corpus.record(paths.raw))


def write_tokens(params: Params, paths: Paths, corpus: Corpus, documents: Documents) -> None:
    """Builds the tokenizer and writes the tokens of `documents`: those of the corpus, or some of them.

    It reads the documents twice if the tokenizer is trained on them.
    """
    tokenize_params = params.tokenize
    for note in _items(corpus, paths, lambda: corpus.notes(paths.raw)):
        say(f"note: {note}")
    tokenizer = _tokenizer(tokenize_params.tokenizer, documents, paths)
    end_of_text = np.array([tokenizer.end_of_text] if tokenize_params.end_of_text else [], dtype=np.uint32)

    with published_folder(paths.tokens, paths) as folder:
        with (
            TokenWriter(folder, "tokens", tokenizer) as writer,
            Progress("tokenizing", "character") as progress,
        ):
            digest, blank = TextDigest(), True
            for piece, ids in encode(documents(), tokenizer, cores()):
                writer.write(ids)
                digest.update(piece.text)
                if piece.last:
                    writer.write(end_of_text if digest.text_bytes else ids[:0])
                    name, split = piece.document.name, piece.document.split
                    writer.end_document(name, digest.text_bytes, split, digest.value)
                    blank = blank and digest.value is None
                    digest = TextDigest()
                progress.update(len(piece.text))
            if blank:
                where = f"put texts into {paths.shown(paths.raw)}" if corpus.name == "files" else "see its options"
                raise DataError(f"the corpus {corpus.name} holds no text: {where}")
        recorded = {"tokenize": _recorded(tokenize_params, corpus)}
        finish_folder(folder, tokenizer, {"tokens": writer.summary()}, params=recorded, corpus=corpus.name)

    fact("read", f"{writer.documents:,} documents, {writer.text_bytes:,} bytes ({corpus.name})")
    fact("encoded", f"{writer.tokens:,} tokens of {writer.text_bytes / writer.tokens:.2f} bytes")
    fact("with", f"{tokenizer.name}, {tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint[:12]}")
    fact("wrote", paths.shown(paths.tokens))


def _recorded(params: TokenizeParams, corpus: Corpus) -> dict[str, Any]:
    """The effective params of the section, with the defaults of omitted corpus options."""
    section = params.model_dump(mode="json")
    section["corpus"][corpus.name] = plain_options(corpus)
    return effective(section)


def _tokenizer(params: TokenizerParams, documents: Documents, paths: Paths) -> Tokenizer:
    if params.name == "tiktoken":
        return published(params.tiktoken.encoding)
    if params.name == "file":
        return from_file(paths.root / params.file.path, params.file.pattern, params.file.end_of_text)
    if params.name == "bytes":
        return raw_bytes()
    wanted = params.bpe.vocab_size
    if params.name == "characters":
        return characters(_read(documents, ONE_CHARACTER))
    sample = Sample()
    for text in _read(documents, GPT2_PATTERN):
        sample.add(text)
    if sample.one_in > 1:
        say(f"note: the text has too many different words: training the tokenizer on 1/{sample.one_in:,} of it")
    texts = sample.pieces or islice(_read(documents, GPT2_PATTERN), None, None, sample.one_in)
    tokenizer = train_bpe(texts, wanted)
    if tokenizer.vocab_size < wanted:
        say(f"note: the vocabulary has only {tokenizer.vocab_size:,} of {wanted:,} tokens: the text is too small")
    return tokenizer


def _read(documents: Documents, pattern: str) -> Iterator[str]:
    with Progress("reading", "character") as progress:
        for piece in pieces(documents(), pattern):
            progress.update(len(piece.text))
            yield piece.text


def read_corpus(corpus: Corpus, paths: Paths) -> Iterator[Document]:
    """The documents of the corpus, checked.

    Raises:
        PluginError: the corpus yields something else than documents.
        DataError: a name is empty, repeated or not UTF-8, or a text cannot be read.
    """
    names: set[str] = set()
    for document in _items(corpus, paths, lambda: corpus.documents(paths.raw)):
        if not isinstance(document, Document) or not isinstance(document.name, str):
            raise PluginError(f"{label(corpus)} must yield Document(name, text), not {type(document).__name__}")
        if document.split not in (None, "train", "val", "test"):
            raise PluginError(
                f"{label(corpus)}: {document.name!r} has the split {document.split!r}, not train, val or test"
            )
        if not document.name or document.name in names:
            raise DataError(
                f"the corpus {corpus.name} has two documents named {document.name!r}: names must be unique"
                if document.name
                else f"{label(corpus)} has a document without a name"
            )
        names.add(document.name)
        if document.name != document.name.encode(errors="ignore").decode():
            raise DataError(f"the corpus {corpus.name}: the name {document.name!r} is not UTF-8: rename it")
        yield replace(document, text=_text(corpus, paths, document))


def _text(corpus: Corpus, paths: Paths, document: Document) -> str | Iterator[str]:
    """A document's text or blocks of text, with each block checked."""

    def checked(text: Any) -> str:
        if not isinstance(text, str):
            raise PluginError(
                f"{label(corpus)}: the text of {document.name!r} must be str, or an iterable of str, not "
                f"{type(text).__name__}"
            )
        try:
            text.isascii() or text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{label(corpus)}: the text of {document.name!r} holds a lone surrogate, "
                f'{text[error.start]!r}: decode it with errors="replace"'
            ) from None
        return text

    if isinstance(document.text, str | bytes) or not isinstance(document.text, Iterable):
        return checked(document.text)
    return map(checked, _items(corpus, paths, lambda: document.text))


def _items(corpus: Corpus, paths: Paths, items: Callable[[], Iterable[T]]) -> Iterator[T]:
    """The items, with errors as DataErrors, in which paths are relative to the project."""

    def explained(message: str) -> DataError:
        return DataError(f"the corpus {corpus.name}: {' '.join(message.replace(f'{paths.root}/', '').split())}")

    try:
        yield from guarded_items(corpus, items, passes=(OSError, ValueError))
    except OSError as error:
        raise explained(explain_os_error(error)) from error
    except ValueError as error:
        with calling(corpus):
            if type(error) is not ValueError:  # a bug, not a message for users
                raise
        raise explained(str(error)) from error
