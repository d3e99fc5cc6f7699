"""Held-out text as documents of the task, so that the harness's sums are those of the pipeline.

The pipeline reads a split as one stream of tokens, ends of text among them, in windows that do not overlap; so does
the harness within a document. Hence the whole split is one document, without its first token, which is given to the
model instead of the harness's own first token. Bits per byte leaves ends of text out of its sum, and the harness
cannot leave a token out; so each end is subtracted: its window's text up to it, with and without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.tokens import TokenFolder


def write_documents(splits: Path, folder: Path, context_length: int) -> dict[str, int]:
    """Writes VAL.jsonl and TEST.jsonl into `folder`; returns the first token of each split by name."""
    tokens = TokenFolder(splits, "run `dvc repro`")
    folder.mkdir(parents=True, exist_ok=True)
    sides = [side for side in tokens.names if side != "train"]
    for side in sides:
        with (folder / f"{side}.jsonl").open("w", encoding="utf-8") as file:
            for document in documents(tokens, side, context_length):
                file.write(json.dumps(document) + "\n")
    return {side: int(tokens.ids(side)[0]) for side in sides}


def documents(tokens: TokenFolder, side: str, context_length: int) -> Iterator[dict[str, Any]]:
    """Texts, each with the sign of its log-likelihood in the sum and its number of bytes."""
    ids, tokenizer = tokens.ids(side), tokens.tokenizer
    yield _document(tokenizer.decode(ids[1:]), 1, int(tokenizer.byte_lengths[ids[1:]].sum()))
    for end in (ids == tokenizer.end_of_text).nonzero()[0].tolist():
        if end > 0:
            start = (end - 1) // context_length * context_length + 1  # the first target of its window
            yield _document(tokenizer.decode(ids[start : end + 1]), -1, 0)
            if end > start:
                yield _document(tokenizer.decode(ids[start:end]), 1, 0)


def _document(text: str, sign: int, size: int) -> dict[str, Any]:
    return {"text": text, "sign": sign, "bytes": size}
