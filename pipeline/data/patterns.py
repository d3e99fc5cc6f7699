"""Split patterns: the regular expressions that cut text into words before a BPE merges their bytes; and the places
where a long text may be cut so that its ids stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from unicodedata import category

import regex

from pipeline.plugin import cuts

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""gpt2's split pattern (Radford et al., 2019), with possessive quantifiers: they match the same and never
backtrack."""

CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
"""cl100k_base's split pattern, as in tiktoken."""

O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""o200k_base's split pattern, as in tiktoken."""

_LLAMA3_PATTERN, _QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    + count
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for count in ("{1,3}", "")
)

ONE_CHARACTER = r"[\s\S]"
"""A split pattern for which each character is a word."""

SECONDS = 10.0
"""The time limit for finding the next word."""

PIECE = 1 << 18
"""Characters per piece: enough to amortise a thread's overhead, few enough to bound memory."""

LONGEST_WORD = 1 << 21
"""The maximum number of characters of a word: a BPE needs some 60 bytes for each."""

_CONTEXT = 64
"""The number of characters after a cut that are examined."""

_FASTER = {
    GPT2_PATTERN: r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$)|\s+(?!\S)|\s",
    CL100K_PATTERN: (
        r"(?:'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+$|\s*[\r\n])|"
        r"\s+(?!\S)|\s"
    ),
}


def faster(pattern: str) -> str:
    """A faster pattern that cuts every text like `pattern`, if one is known; else `pattern`.

    tiktoken's regular expressions run as an automaton, except for look-aheads and possessive quantifiers, which
    need backtracking. With plain quantifiers and in a group, everything before the look-ahead is a single
    automaton. It matches the same: a possessive quantifier matters only if what follows it could match the same
    characters.
    """
    return _FASTER.get(pattern, pattern)


def cut(text: str | Iterable[str], pattern: str, size: int = PIECE) -> Iterator[str]:
    """Cuts a text, or its consecutive blocks, between words of `pattern`, so that the ids stay the same.

    A piece has `size` to 2 · `size` characters, or more if a single word does. Memory is bounded, time is linear.

    Raises:
        ValueError: a word has more than `LONGEST_WORD` characters.
    """
    find_word_end = word_end(pattern)
    pending: list[str] = []
    length, min_length, before = 0, 2 * size, 0
    for block in [text] if isinstance(text, str) else text:
        pending.append(block)
        length += len(block)
        if length < min_length:
            continue
        joined = "".join(pending)
        start = 0
        while len(joined) - start >= min_length:
            end = find_word_end(joined[start : start + min_length], size)
            if end is None and min_length >= 2 * max(LONGEST_WORD, size):
                raise ValueError(
                    f"after byte {before:,}, {joined[start : start + 20]!r}…, a word has over {LONGEST_WORD:,} "
                    "characters, too many to encode: insert line breaks, remove it, or set "
                    "tokenize.tokenizer.name: bytes"
                )
            if end is None:
                min_length *= 2  # do not rescan a long word for each block
            else:
                piece = joined[start : start + end]
                yield piece
                before += len(piece) if piece.isascii() else len(piece.encode(errors="surrogatepass"))
                start, min_length = start + end, 2 * size
        pending, length = [joined[start:]], len(joined) - start
    yield "".join(pending)


def ends_after_words(pattern: str) -> bool:
    """Whether `pattern` ends a word wherever `pipeline.plugin.word_end` says."""
    return pattern in {ONE_CHARACTER, GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN, _LLAMA3_PATTERN, _QWEN2_PATTERN}


def word_end(pattern: str) -> Callable[[str, int], int | None]:
    """A function of (text, least) that returns where a text may be cut: the offset in characters, at least `least`,
    of an end of a word of `pattern`, whatever follows the text. It returns None if there is none.

    In general it iterates over the words until an end `_is_settled`. The patterns of gpt2, llama3 and others always
    end a word between a letter or digit and certain marks; such an offset is found much faster.
    """
    if pattern == ONE_CHARACTER:
        return lambda text, least: least if least < len(text) else None
    words = compiled(pattern)
    if not ends_after_words(pattern):
        return partial(_settled_end, words)

    def quick(text: str, least: int) -> int | None:
        end = cuts.word_end(text, least)
        return _settled_end(words, text, least) if end is None else end

    return quick


def _settled_end(words: regex.Pattern[str], text: str, least: int) -> int | None:
    ends = [0, 0, 0, 0, 0]  # of the last five words
    last = len(text) - min(least, _CONTEXT)
    for word in _matches(words, text):
        if word.end() == len(text) or ends[2] > last:
            return None
        ends = [*ends[1:], word.end()]
        if ends[2] >= least and _is_settled(words, text, ends):
            return ends[2]
    return None


def _is_settled(words: regex.Pattern[str], text: str, ends: list[int]) -> bool:
    """Whether a cut at the third of five consecutive ends of words changes no word: those before it do not depend
    on the text after it, and those after it do not depend on the text before it.

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
    """The words of `text`, of any length.

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
            if start == begun:  # otherwise many words, or their consumer, took the time
                raise ValueError(
                    f"the split pattern {words.pattern!r} takes over {SECONDS:.0f} s at "
                    f"{text[start : start + 20]!r}…: choose another tokenizer"
                ) from None


@lru_cache(maxsize=8)
def compiled(pattern: str) -> regex.Pattern[str]:
    """Compiles `pattern` with the package regex.

    Raises:
        ValueError: it is not a valid regular expression.
    """
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"the split pattern {pattern!r} is not a valid regular expression: {error}") from None
