"""Excerpts of held-out text: the loss of each token, and the tokens that the model expected."""

from __future__ import annotations

import math

import numpy as np
import torch

from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.breakdown import UnitScore
from pipeline.evaluate.report.records import Excerpt, Token
from pipeline.model.architecture import LanguageModel, checked_forward
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.device import device_of, float64_device
from pipeline.model.scoring import evaluating

EXPECTED = 5
TOKENS = 240
"""The maximum number of tokens of an excerpt, about one screen."""
_READABLE = 120
"""The minimum number of tokens of a document to choose, if there is one that long."""


def read_excerpt(checkpoint: Checkpoint, splits: TokenFolder, side: str, documents: list[UnitScore]) -> Excerpt:
    """The beginning of the document with the median loss among those that are long enough.

    The choice is automatic, and neither the best nor the worst. The text before the document is not used as
    context.

    Args:
        checkpoint: The model and its tokenizer.
        splits: The held-out text.
        side: "val" or "test".
        documents: The losses of its documents.
    """
    entries = list(splits.documents(side))
    length = min(TOKENS, checkpoint.model.architecture.shape.context_length)
    readable = [entry for entry in entries if entry.tokens >= min(_READABLE, length)]
    losses = {each.name: each.nats / each.tokens for each in documents}
    candidates = [entry for entry in readable if entry.name in losses] or [
        max(entries, key=lambda entry: entry.tokens)
    ]
    chosen = sorted(candidates, key=lambda entry: (losses.get(entry.name, 0.0), entry.start))[len(candidates) // 2]
    start = max(chosen.start - 1, 0)  # include the end-of-text before it as context of the first token
    ids = splits.ids(side)[start : chosen.start + min(chosen.tokens, length)].astype(np.int64)
    tokens = token_views(checkpoint.model, checkpoint.tokenizer, ids[: length + 1])
    return Excerpt(side, chosen.name, tokens[chosen.start - start :])


@torch.no_grad()
def token_views(model: LanguageModel, tokenizer: Tokenizer, ids: np.ndarray) -> list[Token]:
    """The `ids` [T + 1] (T ≤ context length) with the model's predictions; the first one has none."""
    first = Token(token_text(tokenizer, int(ids[0])))
    if len(ids) == 1:
        return [first]
    text = torch.from_numpy(ids).to(device_of(model))
    with evaluating(model):
        logits = checked_forward(model, text[None, :-1]).logits[0]
    exact = float64_device(logits.device)
    log_p = torch.log_softmax(logits.to(exact).double(), dim=-1)
    target_log_p = log_p.gather(1, text[1:, None].to(exact))
    ranks = (log_p >= target_log_p).sum(dim=1).tolist()
    top = log_p.topk(min(EXPECTED, log_p.shape[1]), dim=1)
    views = [first]
    for row, token in enumerate(ids[1:].tolist()):
        likeliest = top.indices[row].tolist()
        expected = [
            (token_text(tokenizer, each), math.exp(value))
            for each, value in zip(likeliest, top.values[row].tolist(), strict=True)
        ]
        hit = likeliest.index(token) if token in likeliest else None
        nats = max(-float(target_log_p[row, 0]), 0.0)
        views.append(Token(token_text(tokenizer, token), nats, ranks[row], tuple(expected), hit))
    return views


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; bytes that are not complete characters are escaped."""
    return tokenizer.token_bytes[token].decode("utf-8", errors="backslashreplace")
