"""Where a text may be cut."""

from __future__ import annotations

import re

_AFTER_A_WORD = re.compile(r"""[ \n.,;:!?"()\[\]{}<>=+*&@\\。，、！？；：](?<=[^\W_].)""", re.DOTALL)


def word_end(text: str, least: int = 0) -> int | None:
    """An offset, at least `least`, where a text may be cut, whatever surrounds it; None if none is found.

    It lies between a letter or digit and a space, a line feed or certain marks. There the split patterns of gpt2,
    cl100k, o200k, llama3 and qwen2 always end a word, so the ids of the two parts are those of the whole.
    """
    found = _AFTER_A_WORD.search(text, least)
    return found.start() if found else None
