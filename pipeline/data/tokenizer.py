"""The tokenizer: text ↔ token ids, encoded by tiktoken and saved beside every token file and checkpoint."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import tiktoken
from pydantic import Base64Bytes, BaseModel, ConfigDict

from pipeline.core.errors import DataError
from pipeline.core.files import write_atomically
from pipeline.core.values import read_values
from pipeline.data.patterns import ONE_CHARACTER, faster, split
from pipeline.plugin.chat import ChatTemplate

END_OF_TEXT = "<|endoftext|>"

LARGEST_ID = 2**24
_EVERY_SORT = "The 1st, it's\n\n  A_b — é e\u0301 語言。\r\n\t½ 🙂\x00x"
"""A probe with letters, marks, digits, punctuation, symbols, white space and a control character."""

TokenIds = np.ndarray[tuple[int], np.dtype[np.uint32]]


class _Saved(BaseModel):
    """The content of a tokenizer's file."""

    model_config = ConfigDict(strict=True)
    name: str
    fingerprint: str
    pattern: str
    special_tokens: dict[str, int]
    end: str
    ranks: list[tuple[Base64Bytes, int]]
    chat_template: str = ""
    template_variables: dict[str, str] = {}


@dataclass(frozen=True)
class Tokenizer:
    """Text ↔ token ids.

    Attributes:
        name: "bpe", "characters", "bytes", a file's name, or the name of a tiktoken encoding.
        pattern: The split pattern: the regular expression that cuts text into words.
        ranks: Byte sequences and their ids, in the order of merges. They include all 256 single bytes, or else they
            are the characters of the corpus.
        special_tokens: Special tokens, including end-of-text, and their ids. Text is never encoded to them.
        end: The special token that ends a document.
        chat_template: The Jinja source of its chat template; empty if it has none.
        template_variables: Further variables of the template, such as `bos_token`.
    """

    name: str
    pattern: str
    ranks: dict[bytes, int]
    special_tokens: dict[str, int]
    end: str = END_OF_TEXT
    chat_template: str = ""
    template_variables: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        try:
            return tiktoken.Encoding(
                self.name,
                pat_str=faster(self.pattern),
                mergeable_ranks=self.ranks,
                special_tokens=self.special_tokens,
            )
        except ValueError as error:
            why = " ".join(str(error).split())
            raise DataError(f"the split pattern {self.pattern!r} of {self.name!r} cannot be used: {why}") from None

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return max(*self.ranks.values(), *self.special_tokens.values()) + 1

    @property
    def end_of_text(self) -> int:
        """The id that ends a document."""
        return self.special_tokens[self.end]

    def encode(self, text: str) -> TokenIds:
        """The ids of `text` as uint32 [T]. Names of special tokens in the text are encoded as ordinary text.

        It releases the GIL, so that threads encode in parallel.

        Raises:
            DataError: a character-level tokenizer lacks a character of the text.
            ValueError: the text holds a lone surrogate, or the pattern takes too long.
        """
        alphabet = self.alphabet
        if alphabet is not None and not alphabet.issuperset(text):  # tiktoken would panic
            unknown = sorted(set(text) - alphabet)[:5]
            shown = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown)
            raise DataError(
                f"{text[:40]!r} cannot be tokenized: the tokenizer {self.name!r} has only the {len(alphabet)} "
                f"characters of its corpus, not {shown}"
            )
        encoding = self._encoding
        try:
            return encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeError:
            raise
        except ValueError:  # tiktoken gives up on a million spaces
            parts = [self._words.encode_to_numpy(word, disallowed_special=()) for word in split(self.pattern, text)]
            return np.concatenate(parts)

    @cached_property
    def _words(self) -> tiktoken.Encoding:
        """Encodes a text as one word."""
        return tiktoken.Encoding(self.name, pat_str=r"[\s\S]+", mergeable_ranks=self.ranks, special_tokens={})

    @cached_property
    def alphabet(self) -> frozenset[str] | None:
        """The characters that have a token; None if every byte has one, which allows any text."""
        if all(bytes([byte]) in self.ranks for byte in range(256)):
            return None
        return frozenset(sequence.decode() for sequence in self.ranks)

    @cached_property
    def chat(self) -> ChatTemplate:
        """The chat template.

        Raises:
            DataError: the tokenizer has none.
        """
        if not self.chat_template:
            raise DataError(
                f"the tokenizer {self.name!r} has no chat template: set tokenize.tokenizer.chat_template, such as "
                "to chatml, and train on conversations"
            )
        return ChatTemplate(self.chat_template, tuple(self.special_tokens), self.template_variables)

    def with_special_tokens(self, names: Sequence[str]) -> Tokenizer:
        """This tokenizer with further special tokens, whose ids follow the vocabulary; those it has stay."""
        new = [name for name in dict.fromkeys(names) if name not in self.special_tokens]
        ids = {name: self.vocab_size + number for number, name in enumerate(new)}
        return replace(self, special_tokens={**self.special_tokens, **ids})

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; invalid UTF-8, such as a part of a character, becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; a special token gives its name."""
        numbers = ids.tolist() if isinstance(ids, np.ndarray) else map(int, ids)
        return b"".join(map(self.token_bytes.__getitem__, numbers))

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id [V]: for special tokens their names, for unused ids nothing."""
        table = [b""] * self.vocab_size
        for sequence, rank in self.ranks.items():
            table[rank] = sequence
        for text, token in self.special_tokens.items():
            table[token] = text.encode()
        return table

    @cached_property
    def byte_lengths(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The number of bytes of each id's text [V]; 0 for special tokens."""
        lengths = np.array([len(each) for each in self.token_bytes], dtype=np.int64)
        lengths[list(self.special_tokens.values())] = 0
        return lengths

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides the ids."""
        return hashlib.sha256(json.dumps(self._contents(), sort_keys=True).encode()).hexdigest()

    def _contents(self) -> dict[str, object]:
        by_rank = sorted(self.ranks.items(), key=lambda item: item[1])
        return {
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "end": self.end,
            "ranks": [(base64.b64encode(sequence).decode(), rank) for sequence, rank in by_rank],
            **({"chat_template": self.chat_template} if self.chat_template else {}),
            **({"template_variables": self.template_variables} if self.chat_template else {}),
        }

    def save(self, path: Path) -> None:
        """Writes the tokenizer to a JSON file for `load`."""
        saved = {"name": self.name, "fingerprint": self.fingerprint, **self._contents()}
        text = json.dumps(saved, ensure_ascii=False)  # with an indent, a large vocabulary takes ten times as long
        write_atomically(path, text + "\n")

    @classmethod
    def load(cls, path: Path, fix: str) -> Tokenizer:
        """Reads a file of `save`.

        Raises:
            DataError: the file is missing or corrupt; `fix` ends the message.
        """
        saved = dict(read_values(path, _Saved, fix))
        fingerprint, ranks = saved.pop("fingerprint"), dict(saved.pop("ranks"))
        tokenizer = cls(ranks=ranks, **saved)
        try:
            tokenizer.check()
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}): {fix}") from None
        if tokenizer.fingerprint != fingerprint:
            raise DataError(f"{path} is damaged (its fingerprint does not match): {fix}")
        return tokenizer

    def check(self) -> None:
        """Raises ValueError unless ids are unique, and the tokens include all bytes or are single characters."""
        ids = [*self.ranks.values(), *self.special_tokens.values()]
        if len(set(ids)) < len(ids):
            raise ValueError("two tokens have the same id")
        if min(ids) < 0 or max(ids) > LARGEST_ID:
            raise ValueError(f"an id is below 0 or above {LARGEST_ID:,}")
        if self.end not in self.special_tokens:
            raise ValueError(f"there is no special token {self.end!r} to end a document")
        if "" in self.special_tokens:
            raise ValueError("a special token is empty")
        if b"" in self.ranks:
            raise ValueError("a token is empty")
        if "".join(split(self.pattern, _EVERY_SORT)) != _EVERY_SORT:
            raise ValueError(f"the split pattern {self.pattern!r} does not match all characters")
        missing = [byte for byte in range(256) if bytes([byte]) not in self.ranks]
        if not missing:
            return
        try:
            only_characters = all(len(sequence.decode()) == 1 for sequence in self.ranks)
        except UnicodeDecodeError:
            only_characters = False
        if self.pattern != ONE_CHARACTER or not only_characters:
            raise ValueError(
                f"there is no token for the byte {missing[0]:#04x} (and {len(missing) - 1} more): a byte-level BPE "
                "has all 256, so that it can read any text"
            )
