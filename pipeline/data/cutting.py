"""Cuts long texts where no token crosses the cut, so that their ids stay the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.data.patterns import word_end

PIECE = 1 << 18
"""Characters per piece: enough to amortise a thread's overhead, few enough to bound memory."""

LONGEST_WORD = 1 << 21
"""The maximum number of characters of a word: a BPE needs some 60 bytes for each."""


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
