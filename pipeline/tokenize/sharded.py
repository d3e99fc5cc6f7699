"""Tokenizes a large corpus: several processes make its shards, and a store keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, as_completed
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.core.console import Progress, say
from pipeline.core.environment import installed_versions
from pipeline.core.errors import DataError
from pipeline.core.files import FileEntry, format_bytes
from pipeline.core.fingerprint import code_identity, fingerprint
from pipeline.core.paths import Paths
from pipeline.core.processor import cores
from pipeline.core.publication import published_folder
from pipeline.data.documents import DocumentIndex
from pipeline.data.patterns import ends_after_words
from pipeline.data.token_writer import shard_stem
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import finish_folder
from pipeline.plugin.chat import ChatTemplate
from pipeline.plugin.components import Corpus, CorpusSource
from pipeline.plugin.faults import all_of
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry
from pipeline.tokenize.documents import (
    UnreadableError,
    check_tokenizer,
    items,
    no_text,
    read_corpus,
    read_source,
    repeated,
)
from pipeline.tokenize.names import repeated_name
from pipeline.tokenize.pool import process_pool
from pipeline.tokenize.shards import (
    CorpusChoice,
    Recipe,
    Shard,
    UnreadableSourcesError,
    divided,
    grouped,
    make_shard,
    survey_shard,
    surveyed,
)
from pipeline.tokenize.store import ShardRecord, TokenStore
from pipeline.tokenize.tokenizers import TRAINED, loaded_tokenizer, sample_of, trained_tokenizer, with_chat
from pipeline.tokenize.vocabulary import of_alphabet, raw_bytes

if TYPE_CHECKING:
    from pipeline.params.params import TokenizeParams, TokenizerParams

T = TypeVar("T")
Summary = dict[str, int]


@dataclass(frozen=True)
class _Chosen:
    """The tokenizer of a run.

    Attributes:
        tokenizer: The tokenizer.
        key: Its key in the store: a hash of what it was trained on, or of itself.
        sample: The number and the size of the sources that it was trained on; empty if it was not.
    """

    tokenizer: Tokenizer
    key: str
    sample: Mapping[str, int]

    @classmethod
    def itself(cls, tokenizer: Tokenizer) -> _Chosen:
        """A tokenizer that was not trained on a sample."""
        return cls(tokenizer, tokenizer.fingerprint[:32], {})


def write_shards(
    params: TokenizeParams,
    paths: Paths,
    corpus: Corpus,
    sources: Sequence[CorpusSource],
    template: ChatTemplate | None,
    recorded: Mapping[str, Any],
    dask: str,
) -> tuple[Tokenizer, Summary]:
    """Writes the tokens of all sources to artifacts/tokens. Shards that are in the store are not made again.

    Args:
        params: The params of the stage.
        paths: The paths of the project.
        corpus: The corpus.
        sources: Its sources.
        template: What makes the parts of its conversations, if it has any.
        recorded: The effective params, for meta.json.
        dask: The address of a Dask cluster; empty for processes of this machine.

    Returns:
        The tokenizer, and the numbers of tokens, documents and bytes.
    """
    kind = params.tokenizer.name
    complete = partial(with_chat, params=params.tokenizer, corpus=corpus, paths=paths)
    chosen = None if kind in TRAINED else _Chosen.itself(complete(loaded_tokenizer(params.tokenizer, paths)))
    pattern = chosen.tokenizer.pattern if chosen else TRAINED[kind]
    shards = list(grouped(divided(corpus, paths, sources, ends_after_words(pattern))))
    choice = CorpusChoice(paths.root, corpus.name, json.dumps({corpus.name: plain_options(corpus)}))
    decisive = {key: value for key, value in recorded.items() if key != "store"}
    settings = fingerprint({"params": decisive, **_identity(choice)})
    # A relative path starts at the main project: DVC runs some experiments in a copy.
    store = TokenStore(paths.resume.parent / params.store if params.store else paths.token_store, settings)
    with store.in_use() as lock:
        if dask:
            from pipeline.tokenize.cluster import dask_cluster

            executor = dask_cluster(dask, store.folder, partial(_identity, choice))
        else:
            executor = process_pool(min(cores(), len(shards)))
        with executor as pool:
            work = _Work(pool, corpus, paths)
            survey = partial(survey_shard, choice, template, alphabet=kind == "characters")
            surveys = work.results("reading", [(partial(survey, shard), shard.bytes) for shard in shards])
            shards = list(surveyed(shards, surveys))
            if kind == "characters":
                alphabet = {each for survey in surveys for each in survey.alphabet}
                chosen = _Chosen.itself(complete(of_alphabet(alphabet)))
            if chosen is None:
                chosen = _trained(params.tokenizer, paths, corpus, shards, store, template)
            changed = kind in TRAINED and store.has_tokenizers() and not store.tokenizer_path(chosen.key).is_file()
            check_tokenizer(corpus, paths, chosen.tokenizer)
            chosen.tokenizer.save(store.tokenizer_path(chosen.key))
            keys = [shard.key(chosen.tokenizer.fingerprint) for shard in shards]
            kept = [store.has(key) for key in keys]
            say(_plan(kept, kind if changed else ""))
            make = partial(make_shard, Recipe(choice, store, chosen.key, params.end_of_text))
            calls = [
                (partial(make, shard, key), 0 if done else shard.bytes)
                for shard, key, done in zip(shards, keys, kept, strict=True)
            ]
            try:
                records = work.results("tokenizing", calls)
            except KeyboardInterrupt:
                say(f"tokenize: {sum(map(store.has, keys)):,} of {len(keys):,} shards are kept for the next run")
                raise
        if all(record.blank for record in records):
            raise no_text(corpus, paths)
        summary = _publish(store, keys, records, chosen, paths, recorded, corpus)
        if not params.store:  # other projects and commits may use what is there
            store.prune(lock, keys, chosen.key)
    reports = [report for record in records for report in record.reports]
    for line in items(corpus, paths, lambda: corpus.end_notes(reports)):
        say(f"note: {corpus.name}: {line}")
    return chosen.tokenizer, summary


def _identity(choice: CorpusChoice) -> dict[str, dict[str, str]]:
    """Digests of the code, and versions of the packages, that decide shards."""
    plugins = Paths(choice.root).plugins
    registry = Registry.load(plugins, ["corpora"], note=lambda text: None)
    corpus: Corpus = registry.build("corpora", choice.name, json.loads(choice.options), "tokenize.corpus")
    files, installed = registry.origins([("corpora", choice.name)])
    identity = code_identity("pipeline.tokenize.shards", files, plugins, installed)
    versions = {name: each for name, each in identity["versions"].items() if name not in ("torch", "numpy")}
    return {**identity, "versions": versions | installed_versions(corpus.packages())}


def _trained(
    params: TokenizerParams,
    paths: Paths,
    corpus: Corpus,
    shards: Sequence[Shard],
    store: TokenStore,
    template: ChatTemplate | None,
) -> _Chosen:
    """A BPE trained on a sample of the sources; or that of the store, if it was trained on the same texts."""
    pairs = list(chain.from_iterable(zip(shard.sources, shard.digests, strict=True) for shard in shards))
    digests = {source.name: digest for source, digest in pairs}
    sources = [source for source, _ in pairs]
    sample = sample_of(sources)
    size = sum(source.bytes for source in sample)
    texts = [(source.name, digests[source.name]) for source in sample]
    code = code_identity("pipeline.tokenize.tokenizers", [], paths.plugins, {})["code"]
    # The tokenizer of the store has its special tokens and chat template, which may come from a file.
    extras = with_chat(raw_bytes(), params, corpus, paths).fingerprint
    key = hashlib.sha256(json.dumps([texts, code, extras]).encode()).hexdigest()[:32]
    if len(sample) < len(sources):
        whole = format_bytes(sum(source.bytes for source in sources))
        say(f"note: {params.name} is trained on {format_bytes(size)} of {whole}")
    found = store.tokenizer(key)
    if found is None:
        if len(sample) == len(sources):
            found = trained_tokenizer(params, lambda: read_corpus(corpus, paths, template))
        else:
            every = (read_source(corpus, paths, source, template) for source in sample)
            found = trained_tokenizer(params, lambda: chain.from_iterable(every))
        found = with_chat(found, params, corpus, paths)
    return _Chosen(found, key, {"sources": len(sample), "bytes": size})


def _plan(kept: Sequence[bool], changed: str) -> str:
    """What is kept and what is to be made, as one line."""
    count, old = len(kept), sum(kept)
    if changed:
        return f"tokenize: the text that {changed} learns from has changed: {count:,} shards to make"
    return f"tokenize: {old:,} of {count:,} shards are kept, {count - old:,} to make"


def _publish(
    store: TokenStore,
    keys: Sequence[str],
    records: Sequence[ShardRecord],
    chosen: _Chosen,
    paths: Paths,
    recorded: Mapping[str, Any],
    corpus: Corpus,
) -> Summary:
    """Puts the shards together in artifacts/tokens."""
    full = {key: record for key, record in zip(keys, records, strict=True) if record.tokens}
    stems = [shard_stem("tokens", number, len(full)) for number in range(len(full))]
    sums = {name: sum(getattr(record, name) for record in records) for name in ("tokens", "documents", "bytes")}
    if any(record.learnt is not None for record in records):
        sums["learnt"] = sum(record.tokens if record.learnt is None else record.learnt for record in records)
    counts = np.zeros(chosen.tokenizer.vocab_size, dtype=np.int64)
    entries = dict[str, FileEntry]()
    with published_folder(paths.tokens, paths) as folder:
        for key, stem in zip(full, stems, strict=True):
            entries |= store.link(key, folder, stem, recorded["store"])
            counts += store.counts(key)
        index = DocumentIndex(folder, stems, [record.tokens for record in full.values()], "")
        if (name := repeated_name(index, sums["documents"])) is not None:
            raise repeated(corpus, name)
        finish_folder(
            folder,
            chosen.tokenizer,
            {"tokens": sums | {"shards": len(full)}},
            params={"tokenize": recorded},
            counts={"tokens": counts},
            known=entries,
            corpus=corpus.name,
            **({"trained_on": chosen.sample} if chosen.sample else {}),
        )
    return sums


@dataclass(frozen=True)
class _Work:
    """Calls in the processes of a pool."""

    pool: Executor
    corpus: Corpus
    paths: Paths

    def results(self, what: str, calls: Sequence[tuple[Callable[[], T], int]]) -> list[T]:
        """The results of calls, in order, with a progress line.

        Args:
            what: What they do.
            calls: The calls, with the number of bytes that each works on.

        Raises:
            UnreadableError: some sources cannot be read; with those that were found until the pool was idle.
        """
        futures = {self.pool.submit(call): size for call, size in calls}
        faults, files = list[str](), set[str]()
        with Progress(what, "byte", total=sum(futures.values())) as progress:
            for future in as_completed(futures):
                try:
                    future.result()
                except CancelledError:
                    continue
                except UnreadableSourcesError as error:
                    faults += error.faults
                    files.update(error.files)
                    for each in futures:
                        each.cancel()
                progress.update(futures[future])
        if faults:
            raise self._unreadable(sorted(faults), files)
        return [future.result() for future in futures]

    def _unreadable(self, faults: Sequence[str], files: Iterable[str]) -> DataError:
        root = f"{self.paths.root}/"  # which the messages do not have
        raw = Path(str(self.paths.raw).removeprefix(root))
        named = [Path(file.removeprefix(root)) for file in files]
        return UnreadableError(self.corpus.name, str(all_of([ValueError(fault) for fault in faults], raw, named)))
