"""The tokenizer in GGUF: tokens, their types, and merges. llama.cpp identifies split patterns by name."""

from typing import NamedTuple

from pipeline.exporting import byte_level_text, is_byte_level, merges
from pipeline.plugin import ExportSource

_GPT2 = {
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
"""The split pattern that llama.cpp calls gpt-2."""
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5


class Vocabulary(NamedTuple):
    """Tokens by id in printable characters, their types, merges as "first second", and the end-of-text id."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    end: int


def vocabulary(source: ExportSource) -> Vocabulary:
    """The GGUF form of the tokenizer.

    Raises:
        ValueError: llama.cpp does not support it.
    """
    fix = "train with tokenize.tokenizer.name: bpe (or tiktoken's gpt2), or leave gguf out of export.formats.use"
    if not is_byte_level(source):
        raise ValueError(f"llama.cpp does not support character tokenizers, only byte-level BPE: {fix}")
    if len(source.ranks) == 256:
        raise ValueError(f"llama.cpp does not support a tokenizer of single bytes, only BPE with merges: {fix}")
    if source.pattern not in _GPT2:
        raise ValueError(
            f"llama.cpp does not know the tokenizer's split pattern ({source.pattern[:40]}…), only gpt2's: {fix}"
        )
    size = source.config["vocab_size"]
    tokens, types = [f"[UNUSED{token}]" for token in range(size)], [_UNUSED] * size
    for sequence, token in source.ranks.items():
        tokens[token], types[token] = byte_level_text(sequence), _NORMAL
    for text, token in source.special_tokens.items():
        tokens[token], types[token] = text, _CONTROL
    if len(set(tokens)) != size:
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise ValueError(f"two tokens have the same text {twice!r}, which llama.cpp does not support: {fix}")
    pairs = [f"{first} {second}" for first, second in merges(source)]
    return Vocabulary(tokens, types, pairs, source.special_tokens[source.end_of_text])
