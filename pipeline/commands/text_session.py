"""The session of a model without a chat template: the user and the model write one text in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch

from pipeline.commands.generate import encoded, show
from pipeline.commands.samplers import Settings
from pipeline.commands.session import SETTINGS_HELP, Session, note
from pipeline.core.errors import ParamsError, PipelineError
from pipeline.model.checkpoint import Checkpoint

_HELP = f"""\
What you type is added to the text, and the model continues the text. Your line
starts a new line of the text, or continues the current line if it starts with
a space. Enter alone lets the model continue. Ctrl-C stops the continuation,
Ctrl-D ends the session.
/undo              remove the last turn: your line and its continuation
/retry             generate another continuation of the last turn
/reset             start with an empty text
/text              show the text so far
{SETTINGS_HELP}
//…                add a line of text that starts with /"""


class _Turn(NamedTuple):
    """The length of the text before a turn, in tokens and in characters, and the typed line."""

    tokens: int
    characters: int
    typed: str


class TextSession(Session):
    """The text so far, and the commands that change it."""

    help: ClassVar[str] = _HELP

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        generator: torch.Generator,
        stops: Sequence[str],
        echo: bool,
    ) -> None:
        """With `echo`, input lines are printed as well: if stdin is not a terminal, nothing else shows them."""
        super().__init__(checkpoint, settings, generator, stops)
        self._echo = echo

    def _clear(self) -> None:
        super()._clear()
        self._text, self._turns = "", list[_Turn]()

    def end(self) -> None:
        """Ends the last printed line."""
        if self._echo and self._text and not self._text.endswith("\n"):
            show("\n")

    def do_undo(self) -> None:
        self._undo_turn()
        note(f"(the text ends with {self._text[-40:]!r})" if self._text else "(an empty text)")

    def do_retry(self) -> None:
        self.turn(self._undo_turn().typed)

    def do_reset(self) -> None:
        self._clear()
        note("(an empty text)")

    def do_text(self) -> None:
        show(self._text + "\n")

    def _undo_turn(self) -> _Turn:
        if not self._turns:
            raise ParamsError("there is no turn to undo")
        turn = self._turns.pop()
        self._read.truncate(turn.tokens)
        self._text = self._text[: turn.characters]
        return turn

    def turn(self, typed: str) -> None:
        """Adds the typed line to the text and prints the continuation."""
        same_line = not self._text or self._text.endswith("\n") or not typed or typed[0].isspace()
        added = typed if same_line else "\n" + typed
        ids = encoded(added, self._tokenizer) if added or not self._text else []
        self._turns.append(_Turn(len(self._read), len(self._text), typed))
        self._add(ids)
        if self._echo:
            show(added)
        self._text += added
        try:
            self._continue()
        except PipelineError:
            self._undo_turn()
            raise

    def _continue(self) -> None:
        unseen = self._read.first_visible
        answer = self._draw({self._tokenizer.end_of_text: "end_of_text"})
        ended = answer.end == "end_of_text"
        self._text += answer.text
        if ended:
            self._add([self._tokenizer.end_of_text])
        if not self._text.endswith("\n") and (ended or not self._echo):
            show("\n")
            self._text += "\n" * ended  # the next document starts on a new line
        if ended:
            note("(end of text: what follows is a new document)")
        if self._read.first_visible > unseen:
            note(f"(context full: the model no longer sees the first {self._read.first_visible:,} tokens)")
