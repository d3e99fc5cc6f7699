"""score: measures how well the trained model predicts given texts, or the answers of given conversations, in total,
per file or per token."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.commands.generate import load_model, require_chat
from pipeline.commands.prompts import read_conversations
from pipeline.commands.stream import score_conversations, score_stream
from pipeline.commands.token_views import TokenView, token_view
from pipeline.core.console import Progress, aligned, fact, json_line, printable, say
from pipeline.core.errors import DataError
from pipeline.data.encode import encode
from pipeline.data.masked import MaskedIds
from pipeline.data.parts import encode_parts
from pipeline.model.scoring import Scores, Summary
from pipeline.plugin.components import Corpus, Document
from pipeline.plugin.registry import Registry
from pipeline.tokenize.stage import build_corpus

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.data.joined import Ids
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.params.params import Params

_BLOCK = 1 << 20
_COLUMNS = {
    "tokens": "{:,}",
    "bytes": "{:,}",
    "loss": "{:.4f}",
    "perplexity": "{:,.2f}",
    "bits_per_byte": "{:.4f}",
    "accuracy": "{:.2%}",
}
"""The columns of the table: the names of the numbers and their formats."""


def run(
    params: Params,
    paths: Paths,
    files: Sequence[str],
    weights: str | None = None,
    by_token: bool = False,
    as_json: bool = False,
    chat: bool = False,
) -> None:
    """Prints the scores of each file ("-": standard input) and of all files; with `by_token` also of every token.

    With `chat` the files hold conversations, and what the assistant says is scored.

    Raises:
        ParamsError: with `chat`, the tokenizer has no chat template.
        DataError: a file is empty, has a single token, or cannot be decoded; or a conversation cannot be read.
    """
    evaluate_params, corpus = params.evaluate, build_corpus(params, paths)
    checkpoint = load_model(params, paths, Registry.load(paths.plugins, ["models"]), weights, "fp32")
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    stride = max(1, round(evaluate_params.stride * model.architecture.shape.context_length))
    start = np.array([tokenizer.end_of_text] if params.tokenize.end_of_text else [], dtype=np.uint32)
    if chat:
        require_chat(checkpoint, "--chat")
    if not as_json:
        what = f"the {checkpoint.weights} weights, of step {checkpoint.step:,}"
        fact("read", f"{paths.shown(paths.checkpoint)}: {what}")

    total, rows = Summary(tokenizer.byte_lengths), list[dict[str, Any]]()

    def add_row(of: dict[str, Any], summary: Summary) -> None:
        rows.append({**of, "tokens": summary.tokens, "bytes": summary.bytes, **summary.metrics()})
        if as_json:
            sys.stdout.write(json_line(rows[-1]))

    def scored(file: str, view: TokenView | None) -> Iterator[Scores]:
        """The scores of a file; `view` shows them."""
        if chat:
            talks = _conversations(file, tokenizer)
            for ids, scores in score_conversations(model, talks, stride, evaluate_params.batch_size):
                if view is not None:
                    view.read_and_scored(ids.tolist(), scores)
                yield scores
            return
        blocks = _ids(file, tokenizer, corpus, paths)
        first = next(blocks)
        if not len(start) and view is not None:
            view.unscored(int(first[0]))
        for scores in score_stream(model, chain([start, first], blocks), stride, evaluate_params.batch_size):
            if view is not None:
                view.scored(scores)
            yield scores

    for file in files:
        if by_token and not as_json:
            say(f"\n── {_display_name(file)} ──")
        summary = Summary(tokenizer.byte_lengths)
        view = token_view(file, tokenizer, as_json) if by_token else None
        quiet = by_token or as_json  # the output is for a program, or long: no progress bar
        with nullcontext() if quiet else Progress(f"scoring {file}", "token") as progress:
            for scores in scored(file, view):
                summary.add(scores)
                total.add(scores)
                if progress is not None:
                    progress.update(len(scores.targets), loss=f"{summary.loss:.4f}")
        if not summary.tokens:
            why = "no message of an assistant" if chat else "a single token, which nothing precedes"
            raise DataError(f"{_display_name(file)} has {why}: there is nothing to score")
        if view is not None:
            view.end()
        add_row({"file": file}, summary)
    if len(files) > 1:
        add_row({"files": len(files)}, total)
    if not as_json:
        for line in _table(rows):
            say(line)


def _display_name(file: str) -> str:
    return "the standard input" if file == "-" else file


def _ids(file: str, tokenizer: Tokenizer, corpus: Corpus, paths: Paths) -> Iterator[Ids]:
    """Yields the ids of a file in one or more non-empty blocks."""
    empty = True
    for _, ids, _ in encode([Document(_display_name(file), _text(file, corpus, paths))], tokenizer, threads=1):
        if len(ids):
            empty = False
            yield ids
    if empty:
        raise DataError(f"{_display_name(file)} is empty: there is nothing to score")


def _conversations(file: str, tokenizer: Tokenizer) -> Iterator[MaskedIds]:
    """The ids of conversations, as tokenize writes them."""
    for messages in read_conversations(file):
        try:
            yield MaskedIds(*encode_parts(tokenizer.chat.parts(messages), tokenizer))
        except ValueError as error:
            where = f"{_display_name(file)}: the conversation that begins with {messages[0].content[:40]!r}"
            raise DataError(f"{where}: {' '.join(str(error).split())}") from None


def _text(file: str, corpus: Corpus, paths: Paths) -> Iterator[str]:
    """Yields the text of a file in blocks, read like the corpus (`tokenize.corpus`: encodings, errors, line ends,
    formats of documents)."""
    try:
        if file == "-":
            yield from corpus.decoded(iter(partial(sys.stdin.buffer.read, _BLOCK), b""), _display_name(file))
        else:
            yield from corpus.file_text(Path(file), paths.raw)
    except ValueError as error:
        raise DataError(" ".join(str(error).split())) from None


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A header line and the rows, in aligned columns."""
    cells = [["", *(name.replace("_", " ") for name in _COLUMNS)]]
    for row in rows:
        numbers = [form.format(row[name]) if name in row else "-" for name, form in _COLUMNS.items()]
        cells.append([printable(_display_name(row["file"])) if "file" in row else "all", *numbers])
    return aligned(cells, range(1, len(cells[0])))
