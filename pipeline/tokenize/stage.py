"""Turn the corpus into token ids.

Writes artifacts/tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.core.console import Progress, fact, say
from pipeline.core.files import format_bytes
from pipeline.core.params_diff import effective
from pipeline.core.processor import cores
from pipeline.core.publication import published_folder
from pipeline.core.symlinks import check_symlinks
from pipeline.data.encode import encode
from pipeline.data.token_writer import TokenWriter, shard_stem
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import finish_folder
from pipeline.plugin.components import Corpus
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry
from pipeline.tokenize.documents import (
    Documents,
    check_tokenizer,
    end_ids,
    items,
    no_text,
    read_corpus,
    without_notes,
    write_documents,
)
from pipeline.tokenize.tokenizers import build_tokenizer, chat_template, with_chat

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import Params, TokenizeParams

KINDS = ["corpora"]

SMALL_BYTES = 1 << 26
"""A corpus whose sources are smaller is tokenized in this process, and nothing of it is stored."""


def run(params: Params, paths: Paths) -> None:
    """Reads the corpus and writes artifacts/tokens: the ids, their index, the tokenizer, meta.json.

    Raises:
        ParamsError, PluginError, DataError: the corpus or the tokenizer cannot be used.
    """
    check_links(params, paths)
    corpus = build_corpus(params, paths)
    _print_notes(corpus, paths)
    template = chat_template(params.tokenize.tokenizer, corpus, paths)
    sources = list(items(corpus, paths, lambda: corpus.sources(paths.raw) or ()))
    if sum(source.bytes for source in sources) < SMALL_BYTES:
        if params.runtime.dask:
            say(f"note: runtime.dask is ignored: it is for files of {format_bytes(SMALL_BYTES)} or more")
        _write_tokens(params, paths, corpus, lambda: read_corpus(corpus, paths, template))
    else:
        from pipeline.tokenize.sharded import write_shards

        recorded = _recorded(params.tokenize, corpus)
        written = write_shards(params.tokenize, paths, corpus, sources, template, recorded, params.runtime.dask)
        _print_facts(*written, corpus, paths, params.tokenize.store)


def check_links(params: Params, paths: Paths) -> None:
    """Checks the links below data/; those in data/raw only if the texts are there, and not below a URL."""
    corpus = params.tokenize.corpus
    elsewhere = corpus.options.get(corpus.name, {}).get("url")
    check_symlinks(paths.root / "data", paths.raw if elsewhere else None)


def build_corpus(params: Params, paths: Paths) -> Corpus:
    """Builds the corpus that params.yaml chooses."""
    corpus: Corpus = Registry.load(paths.plugins, KINDS).chosen("corpora", params)[0]
    return corpus


def record_corpus(params: Params, paths: Paths) -> Iterator[str]:
    """Records texts on another machine below data/, as `Corpus.record` does; yields a line for each change."""
    corpus = build_corpus(params, paths)
    yield from items(corpus, paths, lambda: corpus.record(paths.raw))


def write_tokens(params: Params, paths: Paths, corpus: Corpus, documents: Documents) -> None:
    """Builds the tokenizer and writes the tokens of `documents`: those of the corpus, or some of them.

    It reads the documents twice if the tokenizer is trained on them.
    """
    _print_notes(corpus, paths)
    _write_tokens(params, paths, corpus, documents)


def _write_tokens(params: Params, paths: Paths, corpus: Corpus, documents: Documents) -> None:
    chosen = params.tokenize.tokenizer
    tokenizer = with_chat(build_tokenizer(chosen, lambda: without_notes(documents), paths), chosen, corpus, paths)
    check_tokenizer(corpus, paths, tokenizer)
    end = end_ids(tokenizer.end_of_text, params.tokenize.end_of_text)
    with published_folder(paths.tokens, paths) as folder:
        with (
            TokenWriter(folder, shard_stem("tokens", 0, 1), tokenizer) as writer,
            Progress("tokenizing", "character") as progress,
        ):
            encoded = encode(documents(), tokenizer, cores())
            if not write_documents(writer, encoded, end, advance=progress.update):
                raise no_text(corpus, paths)
        recorded = {"tokenize": _recorded(params.tokenize, corpus)}
        files, counts = {"tokens": writer.summary() | {"shards": 1}}, {"tokens": writer.counts}
        finish_folder(folder, tokenizer, files, params=recorded, counts=counts, corpus=corpus.name)
    _print_facts(tokenizer, writer.summary(), corpus, paths)


def _print_notes(corpus: Corpus, paths: Paths) -> None:
    for note in items(corpus, paths, lambda: corpus.notes(paths.raw)):
        say(f"note: {note}")


def _print_facts(
    tokenizer: Tokenizer, summary: dict[str, int], corpus: Corpus, paths: Paths, store: str = ""
) -> None:
    fact("read", f"{summary['documents']:,} documents, {summary['bytes']:,} bytes ({corpus.name})")
    fact("encoded", f"{summary['tokens']:,} tokens of {summary['bytes'] / summary['tokens']:.2f} bytes")
    fact("with", f"{tokenizer.name}, {tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint[:12]}")
    fact("wrote", f"{paths.shown(paths.tokens)}{f', and ids in {store}' if store else ''}")


def _recorded(params: TokenizeParams, corpus: Corpus) -> dict[str, Any]:
    """The effective params of the section, with the defaults of omitted corpus options."""
    section = params.model_dump(mode="json")
    section["corpus"][corpus.name] = plain_options(corpus)
    return effective(section)
