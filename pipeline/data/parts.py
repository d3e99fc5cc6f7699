"""Texts in parts: ids with special tokens, and which of them are learnt; a conversation's prompt and its ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np

from pipeline.core.errors import DataError
from pipeline.data.masked import Learn
from pipeline.data.patterns import cut
from pipeline.data.tokenizer import TokenIds, Tokenizer
from pipeline.plugin.components import Message, Part


def plain_text(parts: Iterable[Part]) -> str:
    """The text of the parts without special tokens."""
    return "".join(part.text for part in parts if not part.special)


def encode_parts(parts: Sequence[Part], tokenizer: Tokenizer) -> tuple[TokenIds, Learn]:
    """The ids of a text in parts [T], and whether each is learnt [T].

    The text between two special tokens is encoded as one string, as other programs do: a token may belong to two
    parts. It is learnt if one of its bytes is.

    Raises:
        DataError: a special token is not in the tokenizer, or the text cannot be encoded.
        ValueError: a word of the text is too long, or the text has a lone surrogate.
    """
    ids, learn = [np.empty(0, np.uint32)], [np.empty(0, np.uint8)]
    for special, group in groupby(parts, key=lambda part: part.special):
        if special:
            for part in group:
                ids.append(np.array([_special_id(part.text, tokenizer)], np.uint32))
                learn.append(np.array([part.learn], np.uint8))
            continue
        texts = list(group)
        encoded = [tokenizer.encode(piece) for piece in cut((part.text for part in texts), tokenizer.pattern)]
        ids += encoded
        learn.append(_learnt(np.concatenate(encoded), texts, tokenizer))
    return np.concatenate(ids), np.concatenate(learn)


def _special_id(name: str, tokenizer: Tokenizer) -> int:
    if name not in tokenizer.special_tokens:
        known = ", ".join(tokenizer.special_tokens)
        raise DataError(
            f"the tokenizer has no special token {name!r} (it has {known}): add it to "
            "tokenize.tokenizer.special_tokens"
        )
    return tokenizer.special_tokens[name]


def _learnt(ids: TokenIds, texts: Sequence[Part], tokenizer: Tokenizer) -> Learn:
    """Whether each id of consecutive texts has a byte that is learnt [T]."""
    if len({part.learn for part in texts}) == 1:
        return np.full(len(ids), texts[0].learn, np.uint8)
    sizes = [len(part.text.encode()) for part in texts]
    learnt_before = np.concatenate([[0], np.cumsum(np.repeat([part.learn for part in texts], sizes))])
    ends = np.cumsum(tokenizer.byte_lengths[ids])
    starts = ends - tokenizer.byte_lengths[ids]
    learnt: Learn = (learnt_before[ends] > learnt_before[starts]).astype(np.uint8)
    return learnt


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The ids of a conversation up to the point where the assistant begins to speak.

    Raises:
        DataError: the tokenizer has no chat template, the template cannot render the messages, or a message cannot
            be encoded.
    """
    try:
        return [int(token) for token in encode_parts(tokenizer.chat.prompt(messages), tokenizer)[0]]
    except UnicodeEncodeError:
        raise DataError("the message is not UTF-8 text: check the terminal's encoding") from None
    except ValueError as error:
        raise DataError(" ".join(str(error).split())) from None


def turn_ends(tokenizer: Tokenizer) -> dict[int, str]:
    """The ids that end an answer, each with its meaning: `end_of_turn` or `end_of_text`.

    Raises:
        DataError: the tokenizer has no chat template, or the template is faulty.
    """
    try:
        end = tokenizer.chat.end_of_turn
    except ValueError as error:
        raise DataError(" ".join(str(error).split())) from None
    ends = {tokenizer.end_of_text: "end_of_text"}
    return ends | {tokenizer.special_tokens[end]: "end_of_turn"} if end else ends
