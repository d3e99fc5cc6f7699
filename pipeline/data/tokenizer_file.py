"""A tokenizer made elsewhere: a byte-level BPE from a tiktoken file or a tokenizer.json, proven before it is used;
or that of a checkpoint."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.data.encode import cut
from pipeline.data.patterns import GPT2_PATTERN
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugin.bytelevel import awkward_texts, byte_characters

_LARGEST_ID = 2**24
_BEGINNING = 1000
"""Bytes in which a checkpoint's tokenizer says that it is one."""


def from_file(path: Path, pattern: str, end_of_text: str, proven: bool = True) -> Tokenizer:
    """A byte-level BPE from a tiktoken file (on each line a token in base64 and its rank) or a tokenizer.json; or
    the tokenizer of a checkpoint of this project, whatever it is, with its own end of text.

    Args:
        path: The file.
        pattern: How a tiktoken file's tokenizer cuts text into words, as the file does not say it: "gpt2" or a
            regular expression. A tokenizer.json brings its own.
        end_of_text: The special token that ends a document; one with this text is added where there is none.
        proven: Whether a tokenizer.json is held against the library that it was written by, which takes seconds.

    Raises:
        DataError: the file is missing or damaged, or holds what tiktoken cannot do to the same ids.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: put the tokenizer's file there, or set tokenize.tokenizer.file.path"
        ) from None
    if not content.lstrip().startswith(b"{"):
        ranks = _tiktoken_ranks(path, content)
        tokenizer = Tokenizer(
            path.name,
            GPT2_PATTERN if pattern == "gpt2" else pattern,
            ranks,
            {end_of_text: max(ranks.values()) + 1},
            end_of_text,
        )
        _check_pattern(tokenizer, _proof_texts(ranks), path)
        return tokenizer
    if b'"fingerprint":' in content[:_BEGINNING]:
        return Tokenizer.load(path, "bring a whole copy")
    tokenizer = _from_tokenizer_json(path, content, end_of_text)
    if not proven:
        return tokenizer
    texts = _proof_texts(tokenizer.ranks)
    _check_pattern(tokenizer, texts, path)
    _check_same_ids(tokenizer, texts, path, content)
    return tokenizer


def _tiktoken_ranks(path: Path, content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise DataError(
                f"{path} line {number}: neither a token in base64 and its rank (a tiktoken file) nor JSON (a "
                "tokenizer.json): bring a whole copy"
            ) from None
    _check_ranks(path, ranks)
    return ranks


def _check_ranks(path: Path, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int] | None = None) -> None:
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(
            f"{path} has no token for the byte {missing[0]:#04x} (and {len(missing) - 1} more): a byte-level BPE "
            "has all 256, so that it can read any text"
        )
    ids = sorted([*ranks.values(), *(special_tokens or {}).values()])
    if len(set(ids)) < len(ids) or ids[0] < 0 or ids[-1] > _LARGEST_ID:
        raise DataError(
            f"{path} gives two tokens one id, or one below 0 or above {_LARGEST_ID:,}: bring a whole copy"
        )


def _from_tokenizer_json(path: Path, content: bytes, end_of_text: str) -> Tokenizer:
    try:
        saved = json.loads(content)
        vocab = {str(token): int(rank) for token, rank in saved["model"]["vocab"].items()}
        special = {str(token["content"]): int(token["id"]) for token in saved.get("added_tokens") or []}
        pattern = _pattern(path, saved)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is no tokenizer.json ({type(error).__name__}: {error})") from None
    to_byte = {character: byte for byte, character in byte_characters().items()}
    try:
        ranks = {
            bytes(to_byte[character] for character in token): rank
            for token, rank in vocab.items()
            if token not in special
        }
    except KeyError as error:
        raise DataError(
            f"{path}: a token holds {error}, which byte-level BPEs do not use: choose another"
        ) from None
    special.setdefault(end_of_text, max([*ranks.values(), *special.values()], default=0) + 1)
    _check_ranks(path, ranks, special)
    return Tokenizer(path.name, pattern, ranks, special, end_of_text)


def _check_same_ids(tokenizer: Tokenizer, texts: Sequence[str], path: Path, content: bytes) -> None:
    """tiktoken merges by rank and the tokenizers library by its list of merges: both must give the same ids."""
    from tokenizers import Tokenizer as Reader

    try:
        reader = Reader.from_str(content.decode())
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{path}: the tokenizers library cannot read it: {' '.join(str(error).split())}") from None
    reader.encode_special_tokens = True
    for text in texts:
        if any(name in text for name in tokenizer.special_tokens):
            continue  # the library finds added tokens that are not special; here they are ordinary text
        if reader.encode(text, add_special_tokens=False).ids != tokenizer.encode(text).tolist():
            raise DataError(
                f"{path}: tiktoken gives {text[:30]!r} other ids than the tokenizers library does: this kind of "
                "tokenizer cannot be used here"
            )


def _pattern(path: Path, saved: Mapping[str, Any]) -> str:
    """The split pattern of a byte-level BPE that reads text as it is; other tokenizers are refused."""
    model, before = saved["model"], saved.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers") or [before]
    found = [str(step.get("type")) for step in steps]
    last = steps[-1]
    if model.get("type") != "BPE" or model.get("byte_fallback") or last.get("type") != "ByteLevel":
        raise DataError(
            f"{path} is a {model.get('type')} tokenizer of {', '.join(found)}: a byte-level BPE is needed"
        )
    if saved.get("normalizer"):
        kind = saved["normalizer"].get("type")
        raise DataError(
            f"{path} changes the text ({kind}) before it reads it: choose a tokenizer without a normalizer"
        )
    if last.get("add_prefix_space"):
        raise DataError(f"{path} puts a space before each text (add_prefix_space): choose one that does not")
    if len(steps) == 1 and last.get("use_regex", True):
        return GPT2_PATTERN
    if len(steps) == 2 and not last.get("use_regex", True) and found[0] == "Split":
        regex = steps[0].get("pattern", {}).get("Regex")
        if regex and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
            return str(regex)
    raise DataError(
        f"{path} cuts text into words by {', '.join(found)}: what can be used is ByteLevel alone, or one Split "
        "by a regular expression (Isolated) and ByteLevel"
    )


def _check_pattern(tokenizer: Tokenizer, texts: Sequence[str], path: Path) -> None:
    """Every text comes back, and text may be cut where `data.encode` cuts it."""
    nothing = tokenizer.vocab_size  # without a rank for the empty match, tiktoken would end in a panic
    probe = replace(tokenizer, ranks={**tokenizer.ranks, b"": nothing})
    what = f"{path}: the split pattern {tokenizer.pattern!r}"
    for text in texts:
        try:
            ids = probe.encode(text).tolist()
        except ValueError as error:
            raise DataError(f"{what} cannot be used: {' '.join(str(error).split())}") from None
        if nothing in ids or probe.decode(ids) != text:
            raise DataError(
                f"{what} loses a part of {text[:30]!r}: it must match each character, and never nothing"
            )
        if [token for part in cut(text, 8) for token in probe.encode(part).tolist()] != ids:
            raise DataError(
                f"{what} joins words over a space or a line break, so that long texts cannot be cut between words: "
                "choose a tokenizer that begins a new word there"
            )


def _proof_texts(ranks: Mapping[bytes, int]) -> list[str]:
    """Awkward texts, and every token, in random order."""
    tokens = [text for text in (token.decode("utf-8", "ignore") for token in ranks) if text]
    random.Random(0).shuffle(tokens)
    return awkward_texts() + ["".join(tokens[start : start + 50]) for start in range(0, len(tokens), 50)]
