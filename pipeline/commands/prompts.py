"""Prompts from files: lines of text, or conversations."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.console import json_line
from pipeline.core.errors import DataError
from pipeline.plugin.components import ROLES, Message


def read_prompts(file: str) -> list[str]:
    """Reads prompts from a file or standard input ("-"), one per line; blank lines are skipped.

    Raises:
        DataError: there is no prompt, or the bytes are not UTF-8.
    """
    name, prompts = _lines(file)
    if not prompts:
        raise DataError(f"{name} has no prompt: write one per line")
    return [prompt for _, prompt in prompts]


def read_questions(texts: Sequence[str], file: str | None, system: str | None) -> list[Sequence[Message]]:
    """Texts, and the lines of a file, each as the message of a user; of a .jsonl file, its conversations, without
    the answers at their ends.

    Each begins with the system message, unless it has its own.

    Raises:
        DataError: the file cannot be read.
    """
    asked: list[Sequence[Message]]
    if file and file.endswith(".jsonl"):
        asked = [without_answer(each) for each in read_conversations(file)]
    else:
        asked = [[Message("user", text)] for text in (read_prompts(file) if file else [])]
    every = [*([Message("user", text)] for text in texts), *asked]
    first = [] if system is None else [Message("system", system)]
    return [each if each[0].role == "system" else [*first, *each] for each in every]


def read_conversations(file: str) -> list[Sequence[Message]]:
    """Reads conversations from JSON lines with `messages`, as the corpus `conversations` has them.

    Raises:
        DataError: there is none, a line is something else, or the bytes are not UTF-8.
    """
    name, lines = _lines(file)
    found = list[Sequence[Message]]()
    for number, line in lines:
        try:
            found.append(_conversation(line))
        except ValueError as error:
            raise DataError(f"{name}, line {number:,}: {error}") from None
    if not found:
        raise DataError(f'{name} has no conversation: write one per line, as {{"messages": […]}}')
    return found


def without_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """A conversation without an answer at its end: the model is to give its own.

    Raises:
        DataError: nothing is left.
    """
    asked = messages[:-1] if messages[-1].role == "assistant" else messages
    if not asked:
        raise DataError(
            f"there is nothing to answer before {messages[-1].content[:40]!r}: begin with the user's message"
        )
    return asked


def conversation_line(messages: Sequence[Message], more: Mapping[str, Any] | None = None) -> str:
    """A conversation as a line of JSON, which the corpus `conversations` reads; `more` are further values."""
    shown = [{"role": message.role, "content": message.content} for message in messages]
    return json_line({"messages": shown, **(more or {})})


def _lines(file: str) -> tuple[str, list[tuple[int, str]]]:
    """The name of a file for messages, and its lines that are not blank, with their numbers."""
    name, data = ("the standard input", sys.stdin.buffer.read()) if file == "-" else (file, Path(file).read_bytes())
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 at byte {error.start:,}: convert it") from None
    return name, [(number, line.removesuffix("\r")) for number, line in enumerate(lines, 1) if line.strip()]


def _conversation(line: str) -> list[Message]:
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"no JSON ({error}): a line holds one conversation") from None
    return list(_messages(value))


def _messages(value: Any) -> Iterator[Message]:
    values = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(values, list) or not values:
        what = "must be" if isinstance(value, dict) and "messages" in value else "is missing:"
        raise ValueError(f'"messages" {what} a list of {{"role": …, "content": …}}')
    for number, each in enumerate(values, 1):
        role, content = (each.get("role"), each.get("content")) if isinstance(each, dict) else (None, None)
        if role not in ROLES:
            raise ValueError(f'message {number}: "role" must be one of {", ".join(ROLES)}, not {json.dumps(role)}')
        if not isinstance(content, str):
            raise ValueError(f'message {number}: "content" must be a text, not {json.dumps(content)[:40]}')
        yield Message(role, content)
