"""Checks for `Exporter.verify`: the ids of conversations, and the model's answer to one.

What a reader makes of the name of a special token in a message is not compared: here it stays plain text, but many
programs read it as the token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.core.errors import DataError
from pipeline.plugin import ExportSource, Message

_CONTENTS = (
    "Hi",
    "",
    " two  spaces \n\n and lines\r\n\t",
    "{{ messages }} {% raw %} {# no comment",
    "'quotes' \"double\" \\n back\\slash",
    "<b>&amp; </b> <|not_special|> <s> [INST]",
    "user\nassistant: 3+4=7, it's 12345.60",
    "é e\u0301 語言 🙂 \u00a0\u200b",
)
_ANSWER_TOKENS = 32


def check_chat_ids(source: ExportSource, ids: Callable[[list[dict[str, str]]], list[int]], reader: str) -> int:
    """Checks that `ids` gives the checkpoint's ids of conversations up to the point where the assistant begins.

    Args:
        source: The checkpoint.
        ids: Messages, with the keys role and content, → ids.
        reader: The name of the program in the message.

    Returns:
        The number of conversations; 0 without a chat template.
    """
    compared = 0
    for messages in _conversations(source.text[:40]) if source.chat else ():
        try:
            expected = source.chat_ids(messages)
        except DataError:  # some templates refuse a system message, or the tokenizer has not all characters
            continue
        got = ids([{"role": message.role, "content": message.content} for message in messages])
        if got != expected:
            place = next((n for n, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), 0)
            raise ValueError(
                f"{reader} gives the conversation that ends with {messages[-1].content[:20]!r} other ids from "
                f"token {place} on: {got[place : place + 4]}, not {expected[place : place + 4]}"
            )
        compared += 1
    return compared


def check_answer(source: ExportSource, answered: Callable[[list[int], int], list[int]], reader: str) -> int:
    """Checks that `answered(ids, n)` gives the checkpoint's greedy answer of at most n ids to a short conversation,
    with the id that ends it; returns their number, 0 without a chat template or room in the context."""
    prompt = source.chat_ids([Message("user", source.text[:20])]) if source.chat else []
    count = min(_ANSWER_TOKENS, source.config["context_length"] - len(prompt))
    if not prompt or count <= 0:
        return 0
    expected = source.greedy(prompt, count)
    end = next((place for place, token in enumerate(expected, 1) if token in source.ends), count)
    if answered(prompt, count) != expected[:end]:
        raise ValueError(f"the greedy answer of {reader} differs from the checkpoint's, or ends elsewhere")
    return end


def chat_proof(
    source: ExportSource,
    ids: Callable[[list[dict[str, str]]], list[int]],
    answered: Callable[[list[int], int], list[int]],
    reader: str,
) -> dict[str, Any]:
    """Runs both checks; returns the entries for verification.json, none without a chat template."""
    if source.chat is None:
        return {}
    return {
        "conversations_with_equal_ids": check_chat_ids(source, ids, reader),
        "equal_answer_tokens": check_answer(source, answered, reader),
    }


def answer_from_greedy(
    source: ExportSource, continued: Callable[[list[int], int], list[int]]
) -> Callable[[list[int], int], list[int]]:
    """The answer for `check_answer`, from a reader that only continues."""

    def answered(prompt: list[int], count: int) -> list[int]:
        ids = continued(prompt, count)
        return ids[: next((place for place, token in enumerate(ids, 1) if token in source.ends), count)]

    return answered


def _conversations(text: str) -> list[Sequence[Message]]:
    """Conversations of one and several turns with `text` and awkward contents."""
    conversations: list[Sequence[Message]] = []
    contents = (text, *_CONTENTS)
    for number, content in enumerate(contents):
        other = contents[number - 1]
        asked = [Message("user", content)]
        answered = [*asked, Message("assistant", other), Message("user", other)]
        conversations += [
            asked,
            answered,
            [Message("system", other), *asked],
            [Message("system", content), *answered],
        ]
    return conversations
