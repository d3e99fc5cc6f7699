"""The tokenizer in GGUF: tokens, their types, merges, and the chat template. llama.cpp identifies split patterns by
name."""

import re
from typing import NamedTuple

from pipeline.exporting import byte_level_text, is_byte_level, merges, portable_template
from pipeline.plugin import ExportSource

_PATTERNS = {
    "gpt-2": {
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    },
    "llama-bpe": {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    },
}
"""The split patterns that llama.cpp knows, by its names of them: GPT-2's and Llama 3's."""
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5


class Vocabulary(NamedTuple):
    """Tokens by id in printable characters, their types, merges as "first second", and llama.cpp's name of the
    split pattern."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pattern: str


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
    pattern = next((name for name, patterns in _PATTERNS.items() if source.pattern in patterns), "")
    if not pattern:
        raise ValueError(
            f"llama.cpp does not know the tokenizer's split pattern ({source.pattern[:40]}…), only those of gpt2 "
            f"and Llama 3: {fix}"
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
    return Vocabulary(tokens, types, pairs, pattern)


def named_ids(source: ExportSource) -> dict[str, int]:
    """The ids that have a name in llama.cpp. It ends its text at each of the three ends: of a text (eos), a turn
    (eot) and a message (eom)."""
    ids, end = source.special_tokens, source.special_tokens[source.end_of_text]
    begin = source.template_token("bos_token", source.end_of_text) or source.end_of_text
    named = {"bos_token_id": ids[begin], "eos_token_id": ids[source.end_of_turn]}
    if source.chat:
        named |= {"eot_token_id": ids[source.end_of_turn], "eom_token_id": end}
    return named


def chat_template(source: ExportSource) -> str:
    """The chat template for llama.cpp, which has no `{% generation %}`, and of whose variables only `bos_token` and
    `eos_token`; empty without one.

    Raises:
        ValueError: llama.cpp cannot read it.
    """
    if source.chat is None:
        return ""
    template = portable_template(source.chat)
    if "{%+" in template or "+%}" in template:
        raise ValueError(
            "llama.cpp does not know {%+ and +%} of the chat template: write the white space in another way"
        )
    return _GENERATION.sub(lambda at: f"{{%{at[1]} {'endif' if at[2] else 'if true'} {at[3]}%}}", template)
