"""Turns of a conversation as token ids: what the model reads before it answers, and which ids end its answer."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.errors import DataError
from pipeline.data.parts import encode_parts
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugin.components import Message


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
