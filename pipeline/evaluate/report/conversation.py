"""Held-out conversations: who says what, and the loss of each token that is learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.breakdown import UnitScore
from pipeline.evaluate.conversations import Speakers
from pipeline.evaluate.report.excerpt import token_views
from pipeline.evaluate.report.records import Conversation, Token
from pipeline.model.checkpoint import Checkpoint

_SHARES = (0.25, 0.5, 0.75)
TOKENS = 400
"""The maximum number of tokens of a conversation on the page."""


def read_conversations(
    checkpoint: Checkpoint, splits: TokenFolder, side: str, documents: Sequence[UnitScore]
) -> Iterator[Conversation]:
    """The documents whose losses are the quartiles, from their beginning, without the text before them as context.

    Documents that fit into the context are preferred.

    Args:
        checkpoint: The model and its tokenizer.
        splits: The held-out text.
        side: "val" or "test".
        documents: The losses of its documents.
    """
    length = min(TOKENS, checkpoint.model.architecture.shape.context_length + 1)
    losses = {each.name: each.nats / each.tokens for each in documents}
    entries = [entry for entry in splits.documents(side) if entry.name in losses]
    fitting = [entry for entry in entries if entry.tokens <= length] or entries
    by_loss = sorted(fitting, key=lambda entry: (losses[entry.name], entry.start))
    speakers, ids = Speakers(checkpoint.tokenizer), splits.masked(side)
    for number in sorted({int(share * len(by_loss)) for share in _SHARES}):
        entry = by_loss[number]
        start, end = entry.start, entry.start + min(entry.tokens, length)
        text, learnt = np.asarray(ids.ids[start:end]).astype(np.int64), ids.learnt(start, end)
        views = token_views(checkpoint.model, checkpoint.tokenizer, text)
        turns = [
            (
                role,
                list(_joined([(views[each], text[each], learnt[each]) for each in places], checkpoint.tokenizer)),
            )
            for role, places in _runs(speakers.of(text, learnt))
        ]
        yield Conversation(side, entry.name, turns, cut=entry.tokens > length)


def _runs(roles: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """The roles in order, each with the indices of its tokens."""
    for role, places in groupby(range(len(roles)), key=roles.__getitem__):
        yield role, list(places)


def _joined(tokens: Sequence[tuple[Token, int, bool]], tokenizer: Tokenizer) -> Iterator[Token]:
    """The tokens; adjacent ones that are only read are one, without a loss."""
    for learnt, group in groupby(tokens, key=lambda each: bool(each[2])):
        if learnt:
            yield from (view for view, _, _ in group)
        else:
            yield Token(tokenizer.decode(token for _, token, _ in group), learnt=False)
