"""Split patterns: the regular expressions that cut text into words before a BPE merges their bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from unicodedata import category

import regex

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""How gpt2 cuts text into words before it merges bytes (Radford et al., 2019), with possessive quantifiers, which
match the same and never backtrack."""

CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
"""How cl100k_base cuts text into words, as tiktoken writes it."""

O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How o200k_base cuts text into words, as tiktoken writes it."""

_LLAMA3_PATTERN, _QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    + count
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for count in ("{1,3}", "")
)

ONE_CHARACTER = r"[\s\S]"
"""Each character is a word."""

SECONDS = 10.0
"""How long a pattern may take to find the next word."""

_CONTEXT = 64
"""Characters behind a cut that are looked at."""

_FASTER = {
    GPT2_PATTERN: r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$)|\s+(?!\S)|\s",
    CL100K_PATTERN: (
        r"(?:'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+$|\s*[\r\n])|"
        r"\s+(?!\S)|\s"
    ),
}


def faster(pattern: str) -> str:
    """A pattern that cuts every text as `pattern` does, but faster, if one is known; else `pattern`.

    tiktoken's regular expressions run as an automaton, except for look-aheads and possessive quantifiers, which
    backtrack. In a group, and with plain quantifiers, everything before the look-ahead is one automaton. It matches
    the same: a possessive quantifier only matters if what follows it could match the characters it keeps.
    """
    return _FASTER.get(pattern, pattern)


def word_end(pattern: str) -> Callable[[str, int], int | None]:
    """Where a text may be cut: a function of (text, least) that returns a place from `least` on, counted in
    characters, where a word of `pattern` ends whatever follows the text; None if there is none.

    It finds the words one by one and takes an end that `_is_settled`. The patterns of gpt2, llama3 and others end a
    word between a letter or digit and one of a few marks, and such a place is found much faster.
    """
    if pattern == ONE_CHARACTER:
        return lambda text, least: least if least < len(text) else None
    words = compiled(pattern)
    if pattern not in {GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN, _LLAMA3_PATTERN, _QWEN2_PATTERN}:
        return partial(_settled_end, words)

    def quick(text: str, least: int) -> int | None:
        found = _AFTER_A_WORD.search(text, least)
        return found.start() if found else _settled_end(words, text, least)

    return quick


_AFTER_A_WORD = re.compile(r"""[ \n.,;:!?"()\[\]{}<>=+*&@\\。，、！？；：](?<=[^\W_].)""", re.DOTALL)


def _settled_end(words: regex.Pattern[str], text: str, least: int) -> int | None:
    ends = [0, 0, 0, 0, 0]  # of the last words
    last = len(text) - min(least, _CONTEXT)
    for word in _matches(words, text):
        if word.end() == len(text) or ends[2] > last:
            return None
        ends = [*ends[1:], word.end()]
        if ends[2] >= least and _is_settled(words, text, ends):
            return ends[2]
    return None


def _is_settled(words: regex.Pattern[str], text: str, ends: list[int]) -> bool:
    """Whether a cut at the third of five consecutive ends of words moves none: the words before it are the same
    whatever little of the text follows, and those behind it are the same whether or not a text stands before.

    A character that this Python's Unicode lacks may be a letter to one package and a symbol to another.
    """
    first, second, cut, *_, last = ends
    behind = cut + _CONTEXT
    return (
        not any(category(character) == "Cn" for character in text[first:last])
        and all(_ends(words, text, first, end)[:2] == [second, cut] for end in {*range(cut, cut + 4), last})
        and [cut + end for end in _ends(words, text[cut:behind])] == _ends(words, text, cut, behind)
    )


def _ends(words: regex.Pattern[str], text: str, start: int = 0, end: int | None = None) -> list[int]:
    return [word.end() for word in _matches(words, text, start, end)]


def split(pattern: str, text: str) -> list[str]:
    """The words of `text`, without a limit to their length.

    Raises:
        ValueError: the pattern takes too long.
    """
    return [word.group() for word in _matches(compiled(pattern), text)]


def _matches(
    words: regex.Pattern[str], text: str, start: int = 0, end: int | None = None
) -> Iterator[regex.Match[str]]:
    while True:
        begun = start
        try:
            for word in words.finditer(text, start, end, timeout=SECONDS):
                start = word.end()
                yield word
            return
        except TimeoutError:
            if start == begun:  # else many words, or whoever reads them, took the time
                raise ValueError(
                    f"the split pattern {words.pattern!r} takes over {SECONDS:.0f} s for "
                    f"{text[start : start + 20]!r}…: choose another tokenizer"
                ) from None


@lru_cache(maxsize=8)
def compiled(pattern: str) -> regex.Pattern[str]:
    """`pattern` as the package regex reads it.

    Raises:
        ValueError: it is no regular expression.
    """
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"the split pattern {pattern!r} is no regular expression: {error}") from None
