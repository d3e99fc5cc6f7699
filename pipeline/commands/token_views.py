"""Each token of a text with its loss: as coloured text, as a table, or as lines of JSON."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod

from pipeline.commands.decode import TextStream
from pipeline.core.console import json_line, printable
from pipeline.data.tokenizer import Tokenizer
from pipeline.model.scoring import Scores

_SHADES = ((1.0, ""), (3.0, "48;5;230;38;5;16"), (5.0, "48;5;223;38;5;16"), (8.0, "48;5;216;38;5;16"))
_WORST = "48;5;203;38;5;16"
"""Backgrounds for the losses below so many nats, and for those above: pale yellow to red, the writing black."""


class TokenView(ABC):
    """Prints tokens one after the other.

    Attributes:
        byte: Where the next token begins in the text, in bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.byte = 0
        self._token_bytes = tokenizer.token_bytes

    def unscored(self, token: int) -> None:
        """The text's first token, where nothing is before it to predict it from."""
        self.byte += len(self._token_bytes[token])

    def scored(self, scores: Scores) -> None:
        """The next tokens and how well each was predicted."""
        columns = (scores.targets.tolist(), scores.nats.tolist(), scores.correct.tolist())
        for token, nats, correct in zip(*columns, strict=True):
            self.show(token, nats, correct)
            self.byte += len(self._token_bytes[token])

    @abstractmethod
    def show(self, token: int, nats: float, correct: bool) -> None:
        """Prints one token."""

    def end(self) -> None:  # noqa: B027 - most have nothing to end
        """The text is at its end."""


class JsonLines(TokenView):
    """A line of JSON for each token."""

    def __init__(self, file: str, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._file = file

    def show(self, token: int, nats: float, correct: bool) -> None:
        text = self._token_bytes[token].decode("utf-8", errors="replace")
        values = {
            "file": self._file,
            "byte": self.byte,
            "id": token,
            "token": text,
            "nats": nats,
            "correct": correct,
        }
        sys.stdout.write(json_line(values))


class Table(TokenView):
    """A row for each token: where it begins, its id, its loss, whether it was the likeliest, and its text."""

    _titles = f"{'byte':>9}{'id':>9}{'nats':>9}  hit  token\n"

    def show(self, token: int, nats: float, correct: bool) -> None:
        if self._titles:
            sys.stdout.write(self._titles)
            self._titles = ""
        text = self._token_bytes[token].decode("utf-8", errors="backslashreplace")
        shown = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
        sys.stdout.write(f"{self.byte:>9,}{token:>9}{nats:>9.4f}  {'yes' if correct else '   '}  '{shown}'\n")


class Coloured(TokenView):
    """The text itself, each token on a background that says how unexpected it was."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._text, self._shade = TextStream(tokenizer), ""
        legend = [f"below {nats:g}" for nats, _ in _SHADES] + ["more"]
        shades = [shade for _, shade in _SHADES] + [_WORST]
        keys = "  ".join(_painted(f" {text} ", shade) for text, shade in zip(legend, shades, strict=True))
        sys.stdout.write(f"nats:  {keys}\n\n")

    def unscored(self, token: int) -> None:
        super().unscored(token)
        self._paint(self._text.add(token), "")

    def show(self, token: int, nats: float, correct: bool) -> None:
        self._paint(self._text.add(token), next((shade for most, shade in _SHADES if nats < most), _WORST))

    def end(self) -> None:
        self._paint(self._text.finish(), "")
        sys.stdout.write("\n\n")

    def _paint(self, text: str, shade: str) -> None:
        sys.stdout.write(_painted(printable(text), shade))


def _painted(text: str, shade: str) -> str:
    """The text on a background, its line breaks left plain: a terminal would colour the rest of the line."""
    return "\n".join(f"\x1b[{shade}m{line}\x1b[0m" if shade and line else line for line in text.split("\n"))


def token_view(file: str, tokenizer: Tokenizer, as_json: bool) -> TokenView:
    """Lines of JSON where they are asked for; else colours on a terminal that has them, and a table elsewhere."""
    if as_json:
        return JsonLines(file, tokenizer)
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Coloured(tokenizer) if coloured else Table(tokenizer)
