"""Held-out text, token by token: how surprising each token was, and what the model expected in its place."""

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
"""The most tokens of an excerpt: a screenful."""
_READABLE = 120
"""Tokens from which a document is long enough to be chosen, if there is such a one."""


def read_excerpt(checkpoint: Checkpoint, splits: TokenFolder, side: str, documents: list[UnitScore]) -> Excerpt:
    """The beginning of the document whose mean loss is the middle one of all that are long enough.

    Nobody picks it, so it is neither the best nor the worst; the text before it is not read.

    Args:
        checkpoint: The model and its tokenizer.
        splits: The held-out text.
        side: "val" or "test".
        documents: The loss of each of its documents.
    """
    entries = list(splits.documents(side))
    length = min(TOKENS, checkpoint.model.architecture.shape.context_length)
    readable = [entry for entry in entries if entry.tokens >= min(_READABLE, length)]
    losses = {each.name: each.nats / each.tokens for each in documents}
    candidates = [entry for entry in readable if entry.name in losses] or [
        max(entries, key=lambda entry: entry.tokens)
    ]
    chosen = sorted(candidates, key=lambda entry: (losses.get(entry.name, 0.0), entry.start))[len(candidates) // 2]
    start = max(chosen.start - 1, 0)  # the end of the document before is the first token's context
    ids = splits.ids(side)[start : chosen.start + min(chosen.tokens, length)].astype(np.int64)
    tokens = token_views(checkpoint.model, checkpoint.tokenizer, ids[: length + 1])
    return Excerpt(side, chosen.name, tokens[chosen.start - start :])


@torch.no_grad()
def token_views(model: LanguageModel, tokenizer: Tokenizer, ids: np.ndarray) -> list[Token]:
    """Each of the `ids` [T + 1], T at most the context, with what the model expected there; the first as it is."""
    first = Token(shown(tokenizer, int(ids[0])))
    if len(ids) == 1:
        return [first]
    text = torch.from_numpy(ids).to(device_of(model))
    with evaluating(model):
        logits = checked_forward(model, text[None, :-1]).logits[0]
    exact = float64_device(logits.device)
    log_p = torch.log_softmax(logits.to(exact).double(), dim=-1)
    own = log_p.gather(1, text[1:, None].to(exact))
    ranks = (log_p >= own).sum(dim=1).tolist()
    top = log_p.topk(min(EXPECTED, log_p.shape[1]), dim=1)
    views = [first]
    for row, token in enumerate(ids[1:].tolist()):
        likeliest = top.indices[row].tolist()
        expected = [
            (shown(tokenizer, each), math.exp(value))
            for each, value in zip(likeliest, top.values[row].tolist(), strict=True)
        ]
        hit = likeliest.index(token) if token in likeliest else None
        nats = max(-float(own[row, 0]), 0.0)
        views.append(Token(shown(tokenizer, token), nats, ranks[row], tuple(expected), hit))
    return views


def shown(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; bytes that are no whole character of their own as escapes."""
    return tokenizer.token_bytes[token].decode("utf-8", errors="backslashreplace")
