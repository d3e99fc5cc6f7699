"""Prints each token of a text with its loss: as coloured text, as a table, or as JSON lines.

Tokens that are only read have no loss.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence

from pipeline.commands.decode import TextStream
from pipeline.core.console import colourless, json_line, printable
from pipeline.data.tokenizer import Tokenizer
from pipeline.model.scoring import Scores

_SHADES = ((1.0, ""), (3.0, "48;5;230;38;5;16"), (5.0, "48;5;223;38;5;16"), (8.0, "48;5;216;38;5;16"))
_WORST = "48;5;203;38;5;16"
_READ = "2"
"""Terminal colours by the upper bound of the loss in nats, and for larger losses: pale yellow to red, black
text; and for tokens that are only read: dim text."""


class TokenView(ABC):
    """Prints the tokens of a text one by one.

    Attributes:
        file: The name of the file, as given.
        byte: The offset of the next token in the text, in bytes.
    """

    def __init__(self, file: str, tokenizer: Tokenizer) -> None:
        self.file, self.byte = file, 0
        self._token_bytes = tokenizer.token_bytes
        self._special = set(tokenizer.special_tokens.values())

    def unscored(self, token: int) -> None:
        """Handles the first token of the text if it is not scored."""
        self.byte += len(self._token_bytes[token])

    def scored(self, scores: Scores) -> None:
        """Prints the next tokens with their scores."""
        columns = (scores.targets.tolist(), scores.nats.tolist(), scores.correct.tolist())
        for token, nats, correct in zip(*columns, strict=True):
            self._show(token, nats, correct)

    def read_and_scored(self, ids: Sequence[int], scores: Scores) -> None:
        """Prints tokens of which some have scores; the others are only read."""
        columns = (scores.places.tolist(), scores.nats.tolist(), scores.correct.tolist())
        found = {place: (nats, correct) for place, nats, correct in zip(*columns, strict=True)}
        for place, token in enumerate(ids):
            self._show(token, *found.get(place, (None, None)))

    def _show(self, token: int, nats: float | None, correct: bool | None) -> None:
        self.show(token, nats, correct)
        self.byte += len(self._token_bytes[token])

    @abstractmethod
    def show(self, token: int, nats: float | None, correct: bool | None) -> None:
        """Prints one token; without a score if it is only read."""

    def end(self) -> None:  # noqa: B027 - optional
        """Prints the end of the output, if any."""


class JsonLines(TokenView):
    """One JSON object per token."""

    def show(self, token: int, nats: float | None, correct: bool | None) -> None:
        text = self._token_bytes[token].decode("utf-8", errors="replace")
        about = {"file": self.file, "byte": self.byte, "id": token, "token": text, "nats": nats, "correct": correct}
        sys.stdout.write(json_line(about))


class Table(TokenView):
    """One row per token: its byte offset, id and loss, whether it was the most likely token, and its text.

    Text stands between quotes, the name of a special token does not.
    """

    _titles = f"{'byte':>9}{'id':>9}{'nats':>9}  hit  token\n"

    def show(self, token: int, nats: float | None, correct: bool | None) -> None:
        text = self._token_bytes[token].decode("utf-8", errors="backslashreplace")
        shown = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
        named = shown if token in self._special else f"'{shown}'"
        loss = "-" if nats is None else f"{nats:.4f}"
        row = f"{self.byte:>9,}{token:>9}{loss:>9}  {'yes' if correct else '   '}  {named}\n"
        sys.stdout.write(self._titles + row)
        self._titles = ""


class ColouredText(TokenView):
    """The text, each token on a background colour that shows its loss."""

    def __init__(self, file: str, tokenizer: Tokenizer) -> None:
        super().__init__(file, tokenizer)
        self._text = TextStream(tokenizer)
        keys = [*((f"below {nats:g}", shade) for nats, shade in _SHADES), ("more", _WORST)]
        keys += [("only read", _READ)] * bool(tokenizer.chat_template)
        sys.stdout.write(f"nats:  {'  '.join(_colour(f' {text} ', shade) for text, shade in keys)}\n\n")

    def unscored(self, token: int) -> None:
        super().unscored(token)
        self._paint(self._text.add(token), "")

    def show(self, token: int, nats: float | None, correct: bool | None) -> None:
        scored = _READ if nats is None else next((shade for most, shade in _SHADES if nats < most), _WORST)
        self._paint(self._text.add(token), scored)

    def end(self) -> None:
        self._paint(self._text.finish() + "\n\n", "")

    def _paint(self, text: str, shade: str) -> None:
        sys.stdout.write(_colour(printable(text), shade))


def _colour(text: str, shade: str) -> str:
    """The text on a background colour. Line breaks get no colour: a terminal would colour the rest of the line."""
    return "\n".join(f"\x1b[{shade}m{line}\x1b[0m" if shade and line else line for line in text.split("\n"))


def token_view(file: str, tokenizer: Tokenizer, as_json: bool) -> TokenView:
    """The view to use: JSON lines if requested, else colours on a terminal that supports them, else a table."""
    if as_json:
        return JsonLines(file, tokenizer)
    return ColouredText(file, tokenizer) if sys.stdout.isatty() and not colourless() else Table(file, tokenizer)
