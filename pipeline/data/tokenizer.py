"""Tokenizers: a byte-level BPE trained on the corpus, raw bytes, or a published encoding; tiktoken encodes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tiktoken

from pipeline.errors import DataError, ParamsError
from pipeline.files import read_json, write_json
from pipeline.plugin.bytelevel import byte_characters

END_OF_TEXT = "<|endoftext|>"

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""How gpt2 cuts text into words before merging bytes (Radford et al., 2019); written with possessive
quantifiers, which match the same and never backtrack."""

_LONGEST_WORD = 1000

TokenIds = np.ndarray[tuple[int], np.dtype[np.uint32]]


@dataclass(frozen=True)
class Tokenizer:
    """Text ↔ token ids.

    Attributes:
        name: What it is: "bpe", "bytes", or tiktoken's name of the encoding.
        pattern: The regular expression that cuts text into words.
        ranks: Byte sequences and their ids, which are also the order of merging.
        special_tokens: Special tokens and their ids, end-of-text among them. They are only ever added by id.
    """

    name: str
    pattern: str
    ranks: dict[bytes, int]
    special_tokens: dict[str, int]

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            self.name,
            pat_str=self.pattern,
            mergeable_ranks=self.ranks,
            special_tokens=self.special_tokens,
        )

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(*self.ranks.values(), *self.special_tokens.values()) + 1

    @property
    def end_of_text(self) -> int:
        """The id that ends a document."""
        return self.special_tokens[END_OF_TEXT]

    def encode(self, text: str) -> TokenIds:
        """The ids of `text` as uint32 [T]; text that looks like a special token is ordinary text.

        Releases Python's global lock, so threads encode side by side.
        """
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 (half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, special tokens as their names."""
        return b"".join([self.token_bytes[int(token)] for token in ids])

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Each id's bytes [V]; a special token's name; empty for ids that mean nothing."""
        table = [b""] * self.vocab_size
        for sequence, rank in self.ranks.items():
            table[rank] = sequence
        for text, token in self.special_tokens.items():
            table[token] = text.encode()
        return table

    @cached_property
    def byte_lengths(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The bytes of text that each id stands for [V]: 0 for special tokens, which are no text."""
        lengths = np.array([len(each) for each in self.token_bytes], dtype=np.int64)
        lengths[list(self.special_tokens.values())] = 0
        return lengths

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides ids."""
        return hashlib.sha256(json.dumps(self._contents(), sort_keys=True).encode()).hexdigest()

    def _contents(self) -> dict[str, object]:
        by_rank = sorted(self.ranks.items(), key=lambda item: item[1])
        return {
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "ranks": [[base64.b64encode(sequence).decode(), rank] for sequence, rank in by_rank],
        }

    def save(self, path: Path) -> None:
        """Writes everything `load` needs as one JSON file."""
        write_json(path, {"name": self.name, "fingerprint": self.fingerprint, **self._contents()})

    @classmethod
    def load(cls, path: Path, mend: str) -> Tokenizer:
        """Reads what `save` wrote; `mend` says what to run when it cannot be read."""
        saved = read_json(path, mend)
        try:
            ranks = {base64.b64decode(sequence): int(rank) for sequence, rank in saved["ranks"]}
            tokenizer = cls(saved["name"], saved["pattern"], ranks, saved["special_tokens"])
            fingerprint = saved["fingerprint"]
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path} does not hold a tokenizer: {mend}") from None
        if tokenizer.fingerprint != fingerprint:
            raise DataError(f"{path} is damaged (its fingerprint does not match): {mend}")
        return tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE (Sennrich et al., 2016) with gpt2's split pattern.

    Args:
        texts: The corpus, in pieces cut between words.
        vocab_size: Tokens in all: 256 bytes, the merges, and end-of-text as the last id. A small corpus may
            have fewer merges in it.
    """
    from tokenizers import Tokenizer as Trainable
    from tokenizers import models, pre_tokenizers, trainers

    trainable = Trainable(models.BPE())
    # A longer word is trained on in parts: a merge takes the square of a word's length.
    words = [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.FixedLength(_LONGEST_WORD)]
    trainable.pre_tokenizer = pre_tokenizers.Sequence(words)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    trainable.train_from_iterator(texts, trainer)
    unicode_to_byte = {character: byte for byte, character in byte_characters().items()}
    ranks = {
        bytes(unicode_to_byte[character] for character in token): rank
        for token, rank in trainable.get_vocab().items()
    }
    return Tokenizer("bpe", GPT2_PATTERN, ranks, {END_OF_TEXT: len(ranks)})


def raw_bytes() -> Tokenizer:
    """Each byte of the text's UTF-8 as a token, and end-of-text as the last id."""
    return Tokenizer("bytes", r"[\s\S]", {bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})


def published(name: str) -> Tokenizer:
    """A tiktoken encoding by name.

    Raises:
        ParamsError: tiktoken knows no such encoding.
        DataError: its vocabulary cannot be downloaded, or the cached file is damaged.
    """
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise ParamsError(
            f"tokenize.tokenizer.tiktoken.encoding: there is no {name!r} (there are: {', '.join(known)})"
        )
    folder = Path(
        os.environ.get("TIKTOKEN_CACHE_DIR")
        or os.environ.get("DATA_GYM_CACHE_DIR")
        or Path(tempfile.gettempdir()) / "data-gym-cache"
    )
    cached = {path: path.read_bytes() for path in _cache_files(folder)}
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:
        damaged = [path for path in cached if not path.exists()]  # tiktoken deletes what does not match
        for path in damaged:
            path.write_bytes(cached[path])
        if damaged:
            raise DataError(
                f"{damaged[0]} is damaged (its checksum is wrong) and could not be downloaded again: "
                "replace it with a good copy"
            ) from None
        raise DataError(
            f"tokenize.tokenizer.tiktoken.encoding: {name}'s vocabulary could not be downloaded "
            f'({type(error).__name__}): on a machine with a network run `python -c "import tiktoken; '
            f"tiktoken.get_encoding('{name}')\"` with TIKTOKEN_CACHE_DIR set to a folder, bring that folder "
            "here and set TIKTOKEN_CACHE_DIR to it; or choose tokenize.tokenizer.name: bpe, which needs no download"
        ) from None
    return Tokenizer(name, encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)


def _cache_files(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if len(path.name) == 40 and path.is_file()]
