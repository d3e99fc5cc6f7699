"""Held-out conversations, read from token ids: who speaks where, and the last answer of each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.data.masked import MaskedIds
from pipeline.data.parts import turn_ends
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder
from pipeline.plugin.chat import ChatTemplate
from pipeline.plugin.components import ROLES, Message, Part, Question

ASSISTANT = "assistant"
_SPECIAL = b"\xff"
"""Around the name of a special token in bytes. It is not in UTF-8, so no text of a user is taken for one."""


@dataclass(frozen=True)
class Turn:
    """What one role says, without the markup of the template."""

    role: str
    text: str


@dataclass(frozen=True)
class Speakers:
    """Tells by a tokenizer's chat template who speaks in a conversation's ids."""

    tokenizer: Tokenizer

    @cached_property
    def _openings(self) -> dict[bytes, str]:
        """What the template puts before the text of each role, where it tells them apart."""
        found: dict[bytes, str] = {}
        if self.tokenizer.chat_template:
            for role in ROLES:
                if opening := _opening(self.tokenizer.chat, role):
                    found.setdefault(opening, role)
        return found

    def of(self, ids: np.ndarray, learnt: np.ndarray) -> list[str]:
        """The role that says each token [T], with the markup before its text; empty where it is not known.

        What is learnt is the assistant's; without a template its role is "learnt".

        Args:
            ids: The conversation from its beginning [T].
            learnt: Whether each token is learnt [T].
        """
        text, starts = self._bytes(ids)
        turns = [(match.start(), self._openings[match.group()]) for match in self._pattern.finditer(text)]
        number = np.searchsorted([start for start, _ in turns], starts, side="right")
        roles = ["", *(role for _, role in turns)]
        learnt_role = ASSISTANT if self.tokenizer.chat_template else "learnt"
        return [learnt_role if each else roles[turn] for turn, each in zip(number.tolist(), learnt, strict=True)]

    def turns(self, ids: np.ndarray) -> list[Turn]:
        """The turns of a conversation, without the one that only begins; a text whose roles the template does not
        tell apart is one turn without a role."""
        text, _ = self._bytes(ids)
        matches = list(self._pattern.finditer(text))
        if not matches:
            return [Turn("", self._shown(text))]
        ends = [*(match.start() for match in matches[1:]), len(text)]
        turns = [
            Turn(self._openings[match.group()], self._shown(text[match.end() : end]))
            for match, end in zip(matches, ends, strict=True)
        ]
        return turns if turns[-1].text else turns[:-1]

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        longest_first = sorted(self._openings, key=len, reverse=True)
        return re.compile(b"|".join(map(re.escape, longest_first)) or b"(?!)")

    def _bytes(self, ids: np.ndarray) -> tuple[bytes, np.ndarray]:
        """The text of ids with marked special tokens, and where each id starts in it."""
        special = set(self.tokenizer.special_tokens.values())
        parts = [
            _SPECIAL + self.tokenizer.token_bytes[each] + _SPECIAL
            if each in special
            else self.tokenizer.token_bytes[each]
            for each in ids.tolist()
        ]
        return b"".join(parts), np.cumsum([0, *map(len, parts)])[:-1]

    @staticmethod
    def _shown(text: bytes) -> str:
        """The text before the first special token behind it."""
        plain = [each for number, each in enumerate(text.split(_SPECIAL)) if number % 2 == 0]
        return next((each for each in plain if each.strip()), b"").decode("utf-8", errors="replace").strip()


_PROBES = {
    "system": (),
    "user": (Message("user", "a"), Message("assistant", "b")),
    "assistant": (Message("user", "a"),),
    "tool": (Message("user", "a"), Message("assistant", "b")),
}
"""A conversation after which each role may speak."""


def _opening(template: ChatTemplate, role: str) -> bytes:
    """What the template puts before a message of a role; empty if it has no such role."""
    said = "\U0010ffff"
    try:
        before = _rendered(template.parts(_PROBES[role])) if _PROBES[role] else b""
        after = _rendered(template.parts([*_PROBES[role], Message(role, said)]))
    except ValueError:
        return b""
    opening, found, _ = after.removeprefix(before).partition(said.encode())
    return opening if found and after.startswith(before) else b""


def _rendered(parts: Sequence[Part]) -> bytes:
    return b"".join(
        _SPECIAL + part.text.encode() + _SPECIAL if part.special else part.text.encode() for part in parts
    )


def held_out_questions(splits: TokenFolder, side: str, limit: int) -> Iterator[Question]:
    """The conversations of a held-out split that end with the assistant, of at most `limit` documents, evenly
    spaced.

    Raises:
        ValueError: there is no such split, or it has no conversations.
    """
    if side not in splits.names:
        raise ValueError(f"there is no split {side!r} (there are: {', '.join(splits.names)}): see split.{side}")
    if not (splits.has_mask(side) and splits.tokenizer.chat_template):
        raise ValueError(f"{side} has no conversations (see docs/chat.md): choose another split, or a file")
    ids, tokenizer = splits.masked(side), splits.tokenizer
    total = splits.meta["files"][side]["documents"]
    chosen = {number * total // min(limit, total) for number in range(min(limit, total))}
    for number, entry in enumerate(splits.documents(side)):
        if number in chosen and (question := last_question(ids, entry.name, entry.start, entry.end, tokenizer)):
            yield question


def last_question(ids: MaskedIds, name: str, start: int, end: int, tokenizer: Tokenizer) -> Question | None:
    """The last answer in the tokens start … end−1, and what comes before; None if it is not said last."""
    learnt, tokens = ids.learnt(start, end), np.asarray(ids.ids[start:end])
    places = np.flatnonzero(learnt)
    if not len(places):
        return None
    last = int(places[-1]) + 1
    first = last - int(np.argmin(learnt[:last][::-1])) if not learnt[:last].all() else 0
    after = tokens[last:][tokens[last:] != tokenizer.end_of_text]
    if first == 0 or tokenizer.decode(after).strip():
        return None
    stops = np.isin(tokens[first:last], list(turn_ends(tokenizer)))
    answer = tokens[first : first + int(np.argmax(stops))] if stops.any() else tokens[first:last]
    return Question(name, tokens[:first].tolist(), tokenizer.decode(answer))
