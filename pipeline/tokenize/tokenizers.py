"""The tokenizer that params.yaml chooses: loaded, or trained on the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.core.console import Progress, say
from pipeline.core.errors import ParamsError, check_not_endless, explain_os_error
from pipeline.data.encode import pieces
from pipeline.data.index import name_hash
from pipeline.data.patterns import GPT2_PATTERN, ONE_CHARACTER
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokenizer_file import from_file, template_of_config
from pipeline.plugin.chat import CHATML, CHATML_TOKENS, ChatTemplate
from pipeline.plugin.components import Corpus, CorpusSource
from pipeline.tokenize.documents import Documents
from pipeline.tokenize.vocabulary import Sample, characters, published, raw_bytes, train_bpe

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import TokenizerParams

SAMPLE_BYTES = 1 << 28
"""A BPE is trained on sources of at most this size together, unless the first has more."""
TRAINED = {"bpe": GPT2_PATTERN, "characters": ONE_CHARACTER}
"""The tokenizers that are trained on the corpus, with their split patterns."""


def sample_of(sources: Sequence[CorpusSource]) -> list[CorpusSource]:
    """The sources to train a tokenizer on: all of them up to `SAMPLE_BYTES`, else those with the smallest hashes of
    their names, in order."""
    if sum(source.bytes for source in sources) <= SAMPLE_BYTES:
        return list(sources)
    chosen, size = set[str](), 0
    for source in sorted(sources, key=lambda source: name_hash(source.name)):
        size += source.bytes
        if chosen and size > SAMPLE_BYTES:
            break
        chosen.add(source.name)
    return [source for source in sources if source.name in chosen]


def build_tokenizer(params: TokenizerParams, documents: Documents, paths: Paths) -> Tokenizer:
    """Loads the tokenizer that params.yaml chooses, or trains it on the documents; without `with_chat`."""
    return trained_tokenizer(params, documents) if params.name in TRAINED else loaded_tokenizer(params, paths)


def with_chat(tokenizer: Tokenizer, params: TokenizerParams, corpus: Corpus, paths: Paths) -> Tokenizer:
    """A tokenizer with the special tokens and the chat template that params.yaml chooses.

    A template of the tokenizer's file that cannot be used is left out, with a note, unless there are conversations.

    Raises:
        ParamsError: the template cannot be read or used.
    """
    source, variables = _template(tokenizer, params.chat_template, corpus, paths)
    tokenizer = tokenizer.with_special_tokens(
        [*params.special_tokens, *(CHATML_TOKENS if source == CHATML else ())]
    )
    if not source:
        return tokenizer
    variables = variables or {"bos_token": "", "eos_token": tokenizer.end}
    chatting = replace(tokenizer, chat_template=source, template_variables=variables)
    try:
        chatting.chat.check()
    except ValueError as error:
        if params.chat_template:
            shown = "" if params.chat_template == "chatml" else f"{params.chat_template}: "
            raise ParamsError(f"tokenize.tokenizer.chat_template: {shown}{error}") from None
        beside = f"the folder of {params.file.path}: {error}"
        if corpus.chat:
            raise ParamsError(f"{beside}; repair it, or set tokenize.tokenizer.chat_template") from None
        say(f"note: {beside}; the template is left out")
        return replace(tokenizer, chat_template="", template_variables={})
    return chatting


def chat_template(params: TokenizerParams, corpus: Corpus, paths: Paths) -> ChatTemplate | None:
    """The template that makes the parts of the corpus's conversations; None if it has none.

    It is known before the tokenizer is trained, whose text it decides.
    """
    if not corpus.chat:
        return None
    tokenizer = raw_bytes() if params.name in TRAINED else loaded_tokenizer(params, paths)
    return with_chat(tokenizer, params, corpus, paths).chat


def _template(tokenizer: Tokenizer, chosen: str, corpus: Corpus, paths: Paths) -> tuple[str, dict[str, str]]:
    """The source of the chat template, and its variables: those in its own tokenizer_config.json, else the
    tokenizer's."""
    variables = tokenizer.template_variables
    if chosen == "chatml":
        return CHATML, variables
    if not chosen:
        return tokenizer.chat_template or (CHATML if corpus.chat else ""), variables
    path = paths.root / chosen
    try:
        check_not_endless(path)
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return text, variables
        source, own = template_of_config(text)
        return source, own or variables
    except (OSError, ValueError) as error:
        why = explain_os_error(error) if isinstance(error, OSError) else f"{chosen} {error}"
        raise ParamsError(
            f"tokenize.tokenizer.chat_template: {why}: give chatml, or the path of a template (.jinja) or of a "
            "tokenizer_config.json"
        ) from None


def loaded_tokenizer(params: TokenizerParams, paths: Paths) -> Tokenizer:
    """A tokenizer that is not trained.

    Raises:
        ParamsError, DataError: it cannot be loaded.
    """
    if params.name == "tiktoken":
        return published(params.tiktoken.encoding)
    if params.name == "file":
        return from_file(paths.root / params.file.path, params.file.pattern, params.file.end_of_text)
    return raw_bytes()


def trained_tokenizer(params: TokenizerParams, documents: Documents) -> Tokenizer:
    """A tokenizer trained on documents, which may be read twice."""
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
