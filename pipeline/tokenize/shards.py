"""Shards: groups of a corpus's sources that are tokenized on their own, by any process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import DataError
from pipeline.core.paths import Paths
from pipeline.data.encode import encode, pieces
from pipeline.data.index import name_hash
from pipeline.data.patterns import ONE_CHARACTER
from pipeline.data.token_writer import TokenWriter
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugin.chat import ChatTemplate
from pipeline.plugin.components import Corpus, CorpusSource, Document
from pipeline.plugin.registry import Registry
from pipeline.tokenize.documents import UnreadableError, end_ids, items, read_source, write_documents
from pipeline.tokenize.store import STEM, ShardRecord, TokenStore, write_record

T = TypeVar("T")

SHARD_BYTES = 1 << 24
"""The usual size of a shard's sources. It is at most four times this, or that of a file that cannot be divided."""


@dataclass(frozen=True)
class CorpusChoice:
    """The corpus that params.yaml chooses, for a process that builds it again.

    Attributes:
        root: The folder of the project.
        name: The name of the corpus.
        options: Its options, as JSON.
    """

    root: Path
    name: str
    options: str


@dataclass(frozen=True)
class Shard:
    """Consecutive sources of a corpus.

    Attributes:
        sources: The sources.
        digests: Their `Corpus.digest`, as far as known.
    """

    sources: tuple[CorpusSource, ...]
    digests: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """The size of the sources."""
        return sum(source.bytes for source in self.sources)

    def key(self, tokenizer: str) -> str:
        """A hash of what decides the shard, beside the settings of the store.

        Args:
            tokenizer: The fingerprint of the tokenizer.
        """
        sources = [
            (digest, source.name, source.start > 0, source.first_record, source.continues)
            for source, digest in zip(self.sources, self.digests, strict=True)
        ]
        return hashlib.sha256(json.dumps([tokenizer, sources]).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Survey:
    """What must be known of a shard before it is made.

    Attributes:
        digests: The `Corpus.digest` of each source.
        records: The number of records in each range of a file; 0 for whole files.
        alphabet: The characters of the texts, sorted, if they were asked for.
    """

    digests: tuple[str, ...]
    records: tuple[int, ...]
    alphabet: str = ""


class UnreadableSourcesError(DataError):
    """Some sources of a shard cannot be read.

    Attributes:
        faults: The corpus's messages.
        files: The files of the shard.
    """

    def __init__(self, faults: Sequence[str], files: Sequence[str]) -> None:
        super().__init__(faults, files)
        self.faults, self.files = faults, files


# ── in the process that tokenizes ─────────────────────────────────────────────────────────────────


def divided(
    corpus: Corpus, paths: Paths, sources: Iterable[CorpusSource], cut_texts: bool
) -> Iterator[CorpusSource]:
    """The sources, with large files divided into ranges.

    Args:
        corpus: The corpus.
        paths: The paths of the project.
        sources: Its sources.
        cut_texts: Whether a single document may be divided: the tokenizer's words end where `word_end` says.
    """
    for source in sources:
        if source.bytes < 2 * SHARD_BYTES:
            yield source
            continue
        ranges = list(items(corpus, paths, partial(corpus.divide, paths.raw, source, SHARD_BYTES)))
        yield from ranges if cut_texts or not any(part.continues for part in ranges) else [source]


def grouped(sources: Iterable[CorpusSource]) -> Iterator[Shard]:
    """Groups sources into shards of about `SHARD_BYTES`.

    Whether a shard ends after a source depends on its name and the magnitude of its size. So a source that is
    added, changed or removed affects its own shard, and others only up to the next such end.
    """
    group, size = list[CorpusSource](), 0
    for source in sources:
        group.append(source)
        size += source.bytes
        one_in = max(1, SHARD_BYTES >> source.bytes.bit_length())
        if source.continues or size >= 2 * SHARD_BYTES or name_hash(source.name) % one_in == 0:
            yield Shard(tuple(group))
            group, size = [], 0
    if group:
        yield Shard(tuple(group))


def surveyed(shards: Iterable[Shard], surveys: Iterable[Survey]) -> Iterator[Shard]:
    """The shards with the digests of their sources and the numbers of their first records."""
    path, records = "", 0
    for shard, survey in zip(shards, surveys, strict=True):
        numbered = []
        for source, count in zip(shard.sources, survey.records, strict=True):
            records = records if source.path == path else 0
            numbered.append(replace(source, first_record=records))
            path, records = source.path, records + count
        yield Shard(tuple(numbered), survey.digests)


# ── in the processes that work for it ─────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Recipe:
    """What a process needs to make a shard of a corpus.

    Attributes:
        corpus: The corpus.
        store: The store.
        tokenizer: The key of the tokenizer in the store.
        end_of_text: Whether end-of-text is written after each document.
    """

    corpus: CorpusChoice
    store: TokenStore
    tokenizer: str
    end_of_text: bool


def survey_shard(choice: CorpusChoice, template: ChatTemplate | None, shard: Shard, *, alphabet: bool) -> Survey:
    """Looks at the sources of a shard.

    Raises:
        UnreadableSourcesError: some cannot be read.
    """
    corpus, paths = _corpus(choice), Paths(choice.root)
    digests, records, characters, faults = list[str](), list[int](), set[str](), list[str]()
    for source in shard.sources:
        try:
            digests.append(_call(corpus, paths, corpus.digest, source))
            is_range = source.bytes < source.size
            records.append(_call(corpus, paths, corpus.count_records, source) if is_range else 0)
            for piece in pieces(read_source(corpus, paths, source, template), ONE_CHARACTER) if alphabet else ():
                characters.update(piece.text)
        except UnreadableError as error:
            faults.append(error.fault)
    if faults:
        raise UnreadableSourcesError(faults, [source.path for source in shard.sources])
    return Survey(tuple(digests), tuple(records), "".join(sorted(characters)))


def make_shard(recipe: Recipe, shard: Shard, key: str) -> ShardRecord:
    """The record of the shard in the store; if it is missing or damaged, it is made.

    Raises:
        UnreadableSourcesError: some sources cannot be read.
        DataError, PluginError: a document cannot be used, or a source has changed.
    """
    store = recipe.store
    if record := store.find(key):
        return record
    corpus, paths = _corpus(recipe.corpus), Paths(recipe.corpus.root)
    tokenizer = _tokenizer(store.tokenizer_path(recipe.tokenizer))
    end = end_ids(tokenizer.end_of_text, recipe.end_of_text)
    read = partial(read_source, corpus, paths, template=tokenizer.chat if corpus.chat else None)
    *others, last = shard.sources
    parts = [(others, False), ([last], True)] if last.continues else [(shard.sources, False)]
    reports, found = list[Any](), False
    with store.adding(key) as folder:
        with TokenWriter(folder, STEM, tokenizer) as writer:
            for sources, continues in parts:
                left = iter(sources)
                documents = (each for source in left for each in read(source, report=reports.append))
                try:
                    encoded = encode(documents, tokenizer, 1)
                    found |= write_documents(writer, encoded, end, continues=continues)
                except UnreadableError as error:
                    faults = [error.fault, *_faults(read, left)]
                    raise UnreadableSourcesError(faults, [source.path for source in shard.sources]) from None
        for source, digest in zip(shard.sources, shard.digests, strict=True):
            if _call(corpus, paths, corpus.digest, source) != digest:
                raise DataError(f"{source.path} changed while it was read: run `pipeline tokenize` again")
        return write_record(folder, writer, reports, blank=not found)


def _faults(read: Callable[[CorpusSource], Iterator[Document]], sources: Iterable[CorpusSource]) -> Iterator[str]:
    """The messages about sources that cannot be read."""
    for source in sources:
        try:
            for document in read(source):
                blocks: Iterable[Any] = document.text if document.ids is None else document.ids
                for _ in blocks:
                    pass
        except UnreadableError as error:
            yield error.fault


def _call(corpus: Corpus, paths: Paths, method: Callable[[Path, CorpusSource], T], source: CorpusSource) -> T:
    (result,) = items(corpus, paths, lambda: [method(paths.raw, source)])
    return result


@lru_cache(maxsize=1)
def _corpus(choice: CorpusChoice) -> Corpus:
    registry = Registry.load(Paths(choice.root).plugins, ["corpora"], note=lambda text: None)
    corpus: Corpus = registry.build("corpora", choice.name, json.loads(choice.options), "tokenize.corpus")
    return corpus


@lru_cache(maxsize=1)
def _tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.load(path, "run `pipeline tokenize` again")
