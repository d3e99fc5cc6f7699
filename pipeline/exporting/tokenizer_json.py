"""tokenizer.json: the checkpoint's tokenizer in the format of the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.plugin.bytelevel import byte_characters
from pipeline.plugin.components import ExportSource

_CHARACTERS = byte_characters()


def tokenizer_json(source: ExportSource) -> dict[str, Any]:
    """The content of tokenizer.json.

    Raises:
        ValueError: a token is not made by merging two others.
    """
    parts = _byte_level_bpe(source) if is_byte_level(source) else _characters(source)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(text, token) for text, token in source.special_tokens.items()],
        "normalizer": None,
        "post_processor": None,
        **parts,
    }


def is_byte_level(source: ExportSource) -> bool:
    """Whether the tokenizer has a token for every byte. If not, it can only encode certain characters."""
    return all(bytes([byte]) in source.ranks for byte in range(256))


def byte_level_text(sequence: bytes) -> str:
    """The bytes of a token as printable characters, in GPT-2's mapping."""
    return "".join([_CHARACTERS[byte] for byte in sequence])


def merges(source: ExportSource) -> list[tuple[str, str]]:
    """The two parts of each token of more than one byte, as `written`, in the order of merging.

    Raises:
        ValueError: a token is not made by merging two others.
    """
    longer = sorted((rank, sequence) for sequence, rank in source.ranks.items() if len(sequence) > 1)
    parts = [_parts(sequence, source.ranks) for _, sequence in longer]
    return [(byte_level_text(first), byte_level_text(second)) for first, second in parts]


def _characters(source: ExportSource) -> dict[str, Any]:
    """A word-level model with one word per character. Without an unknown token, unknown characters are errors."""
    return {
        "pre_tokenizer": _split_by(source.pattern),
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {
                **{sequence.decode(): rank for sequence, rank in source.ranks.items()},
                **source.special_tokens,
            },
            "unk_token": "",
        },
    }


def _split_by(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _byte_level_bpe(source: ExportSource) -> dict[str, Any]:
    """A byte-level BPE model with the checkpoint's split pattern, ids and merges."""
    return {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                _split_by(source.pattern),
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            # Special tokens must be in the vocabulary: otherwise they get the next free id instead of their own.
            "vocab": {
                **{byte_level_text(sequence): rank for sequence, rank in source.ranks.items()},
                **source.special_tokens,
            },
            "merges": [list(pair) for pair in merges(source)],
        },
    }


def _added_token(text: str, token: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, "special": True, **flags}


def _parts(sequence: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts whose merge gives the token: the state of merging by rank before the last merge."""
    parts = [sequence[index : index + 1] for index in range(len(sequence))]
    while len(parts) > 2:
        candidates = [(ranks.get(parts[i] + parts[i + 1], len(ranks) + 1), i) for i in range(len(parts) - 1)]
        rank, index = min(candidates)
        if rank >= ranks[sequence]:
            raise ValueError(f"the token {sequence!r} is not made by merging two others")
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]
