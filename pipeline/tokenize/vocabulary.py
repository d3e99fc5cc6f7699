"""Vocabularies: a BPE trained on the corpus, the corpus's characters, raw bytes, or a published encoding."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import tiktoken

from pipeline.core.errors import DataError, ParamsError
from pipeline.data.patterns import GPT2_PATTERN, ONE_CHARACTER
from pipeline.data.tokenizer import END_OF_TEXT, Tokenizer
from pipeline.data.tokenizer_file import byte_ranks

_LONGEST_WORD = 1000
MOST_BYTES = 1 << 24
"""The maximum size of the different words to train a BPE on: the trainer needs some 120 bytes of memory per
byte."""


class Sample:
    """Chooses the pieces of a text to train a BPE on: every piece, every second, every fourth, …, so that their
    different words have at most `MOST_BYTES`.

    The size is estimated from the words between white space: all long ones, and 1/64 of the others, chosen by hash.

    Attributes:
        pieces: All pieces, if the text has at most `MOST_BYTES`, so that it need not be read again; else empty.
    """

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._length = self._count = 0
        self._seen: list[set[int]] = [set() for _ in range(32)]
        self._bytes = [0] * 32

    def add(self, text: str) -> None:
        """Counts the words of the next piece."""
        self._length += len(text.encode(errors="replace"))
        self.pieces.append(text)
        if self._length > MOST_BYTES:
            self.pieces.clear()
        sizes: dict[int, int] = {}
        for word in map(str.encode, set(text.encode(errors="replace").decode().split())):
            number = crc32(word)
            if len(word) > 64 or number % 64 == 0:
                sizes[number] = len(word) if len(word) > 64 else 64 * len(word)
        for level, seen in enumerate(self._seen):
            if self._count % (1 << level):
                break
            if self._bytes[level] <= MOST_BYTES:
                self._bytes[level] += sum(sizes[number] for number in sizes.keys() - seen)
                seen.update(sizes)
        self._count += 1

    @property
    def one_in(self) -> int:
        """n if every n-th piece is used: 1, 2, 4, …."""
        if self._length <= MOST_BYTES:
            return 1
        return next((1 << level for level, count in enumerate(self._bytes) if count <= MOST_BYTES), 1 << 31)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE (Sennrich et al., 2016) with gpt2's split pattern.

    Args:
        texts: The corpus, in pieces cut between words.
        vocab_size: The number of tokens: 256 bytes, merges, and end-of-text as the last id. A small corpus may give
            fewer.
    """
    from tokenizers import Tokenizer as Trainable
    from tokenizers import models, pre_tokenizers, trainers

    trainable = Trainable(models.BPE())
    # Long words are split: the time for merges grows with the square of a word's length.
    words = [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.FixedLength(_LONGEST_WORD)]
    trainable.pre_tokenizer = pre_tokenizers.Sequence(words)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    trainable.train_from_iterator(texts, trainer)
    ranks = byte_ranks(trainable.get_vocab())
    return Tokenizer("bpe", GPT2_PATTERN, ranks, {END_OF_TEXT: len(ranks)})


def characters(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer with a token for each character of the corpus, by code point; end-of-text is the last id."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
    return of_alphabet(alphabet)


def of_alphabet(alphabet: Iterable[str]) -> Tokenizer:
    """A tokenizer with a token for each of these characters, as `characters`."""
    try:
        ranks = {character.encode(): rank for rank, character in enumerate(sorted(alphabet))}
    except UnicodeEncodeError:
        raise DataError("the corpus holds a lone surrogate, which is not valid text: remove it") from None
    return Tokenizer("characters", ONE_CHARACTER, ranks, {END_OF_TEXT: len(ranks)})


def raw_bytes() -> Tokenizer:
    """A tokenizer with a token for each of the 256 bytes; end-of-text is the last id."""
    return Tokenizer("bytes", ONE_CHARACTER, {bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})


def published(name: str) -> Tokenizer:
    """A tiktoken encoding by name.

    Raises:
        ParamsError: tiktoken has no such encoding.
        DataError: its vocabulary cannot be downloaded, or the cached file is corrupt.
    """
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise ParamsError(
            f"tokenize.tokenizer.tiktoken.encoding: there is no {name!r}; choose one of {', '.join(known)}"
        )
    folder = Path(
        os.environ.get("TIKTOKEN_CACHE_DIR")
        or os.environ.get("DATA_GYM_CACHE_DIR")
        or Path(tempfile.gettempdir()) / "data-gym-cache"
    )
    cached = {path: path.read_bytes() for path in folder.glob("?" * 40) if path.is_file()}
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:
        damaged = [path for path in cached if not path.exists()]  # tiktoken deletes corrupt files
        for path in damaged:
            path.write_bytes(cached[path])
        if damaged:
            raise DataError(
                f"{damaged[0]} is damaged (wrong checksum) and could not be downloaded again: replace it with "
                "an intact copy"
            ) from None
        raise DataError(
            f"tokenize.tokenizer.tiktoken.encoding: {name}'s vocabulary could not be downloaded "
            f'({type(error).__name__}): on a machine with a network run `python -c "import tiktoken; '
            f"tiktoken.get_encoding('{name}')\"` with TIKTOKEN_CACHE_DIR set to a folder, copy that folder here "
            "and set TIKTOKEN_CACHE_DIR to it; or set tokenize.tokenizer.name: bpe, which needs no download"
        ) from None
    return Tokenizer(name, encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)
