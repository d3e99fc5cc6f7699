"""Incremental decoding of sampled tokens: complete characters only, up to the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from pipeline.data.tokenizer import Tokenizer


class TextStream:
    """Decodes text token by token. Incomplete characters and possible beginnings of a stop string are held back.

    The text ends before the stop string that is completed first; if several are completed at the same position,
    before the longest one.

    Attributes:
        stopped: Whether a stop string was found. The text has ended then.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(
            "replace"
        )  # a token may end in the middle of a character
        self._stops = stops
        self._held = ""

    def add(self, token: int) -> str:
        """Adds the next id; returns the text that became final, which may be empty."""
        return self._certain(self._decoder.decode(self._token_bytes[token]))

    def finish(self) -> str:
        """Ends the text; returns the text that was held back."""
        text = self._certain(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _certain(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        begun = [n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        certain = len(text) - max(begun, default=0)
        self._held = text[certain:]
        return text[:certain]
