"""split: token ids → train, val and test, as raw ids that other trainers read as they are."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline.console import fact
from pipeline.data.split import SIDES, by_document, by_position
from pipeline.data.tokens import TokenFolder, TokenWriter, finish_folder
from pipeline.errors import DataError
from pipeline.files import published_folder

if TYPE_CHECKING:
    from pipeline.params import Params, SplitParams
    from pipeline.paths import Paths


def run(params: Params, paths: Paths) -> None:
    """Reads artifacts/tokens and writes artifacts/splits: train.bin, val.bin, test.bin, indexes, meta.json."""
    own = params.split
    tokens = TokenFolder(paths.tokens, "run `python -m pipeline tokenize`")
    if own.by == "document":
        parts = by_document(tokens, own.seed, own.val, own.test)
    else:
        parts = by_position(tokens, own.unit, own.val, own.test)

    sides = [side for side in SIDES if side != "test" or own.test > 0]
    with published_folder(paths.splits) as folder:
        with ExitStack() as stack:
            writers = {side: stack.enter_context(TokenWriter(folder, side, tokens.tokenizer)) for side in sides}
            for part in parts:
                writers[part.side].write(part.ids)
                writers[part.side].end_document(part.name, part.text_bytes)
            files = {side: writer.summary() for side, writer in writers.items()}
        _check(files, own)
        finish_folder(folder, tokens.tokenizer, files, by=own.by)

    total = sum(file["tokens"] for file in files.values())
    fact("read", f"{paths.shown(paths.tokens)}: {total:,} tokens")
    for side, file in files.items():
        size = f"{file['tokens']:,} tokens ({file['tokens'] / total:.1%})"
        fact(side, f"{size}, {file['documents']:,} documents, {file['bytes']:,} bytes")
    fact("wrote", f"{paths.shown(paths.splits)} (by {own.by})")


def _check(files: dict[str, dict[str, int]], params: SplitParams) -> None:
    documents = sum(file["documents"] for file in files.values())
    for side, file in files.items():
        if file["tokens"] >= 2:  # one to see and one to predict
            continue
        what = f"split.{side}" if side != "train" else f"split.val {params.val} and split.test {params.test}"
        if params.by == "document":
            raise DataError(
                f"split: {side} gets {file['documents']} of {documents} documents: set split.by: position (the way "
                f"for few documents), or change {what} or split.seed"
            )
        raise DataError(f"split: {side} gets {file['tokens']} tokens: raise or lower {what}, or bring more text")
