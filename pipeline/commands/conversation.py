"""The session of a model with a chat template: messages of the user, and answers of the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from pipeline.commands.generate import show
from pipeline.commands.prompts import conversation_line
from pipeline.commands.samplers import Settings
from pipeline.commands.session import SETTINGS_HELP, Answer, Session, note
from pipeline.core.errors import ParamsError, PipelineError, explain_os_error
from pipeline.core.files import write_atomically
from pipeline.data.parts import prompt_ids, turn_ends
from pipeline.model.checkpoint import Checkpoint
from pipeline.plugin.components import Message

_QUOTES = '"""'
_HELP = f"""\
What you type is a message, and the model answers. A message of several lines
stands between {_QUOTES} and {_QUOTES}. Ctrl-C stops an answer; Enter alone continues an
answer that was cut off. Ctrl-D ends the session.
/system TEXT       set the system message; alone it shows it, with - removes it
/undo              remove the last message and its answer
/retry             generate another answer to the last message
/reset             start a new conversation; the system message stays
/text              show the conversation so far
/save FILE         write the conversation to a new file, as a line of JSON
{SETTINGS_HELP}
//…                a message that starts with /"""
_CUT = ("length", "interrupt")
"""The ends of answers that can be continued."""


class Conversation(Session):
    """The messages so far, and the commands that change them.

    Before each answer the messages are written by the chat template. The model computes only what differs from the
    tokens that it has read.
    """

    help: ClassVar[str] = _HELP

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        generator: torch.Generator,
        stops: Sequence[str],
        system: str | None,
    ) -> None:
        super().__init__(checkpoint, settings, generator, stops)
        self._context = checkpoint.model.architecture.shape.context_length
        self._ends = turn_ends(self._tokenizer)
        self._open: list[str] | None = None  # the lines of a message that begins with quotes
        self._system: list[Message] = []
        self._use_system(system)

    def _clear(self) -> None:
        super()._clear()
        self._messages = list[Message]()  # of user and assistant, in turns
        self._begins = list[int]()  # for each turn, the index of the first message that the model saw before it
        self._first = 0  # the index of the first message that the model sees
        self._last = Answer("", [], "")  # the last answer
        self._told = False

    # ── input ─────────────────────────────────────────────────────────────────────────────────────

    def obey(self, line: str) -> bool:
        """Executes an input line; collects those between quotes."""
        if self._open is None and not line.startswith(_QUOTES):
            return super().obey(line)
        if self._open is None:
            line = line.removeprefix(_QUOTES)
        self._open = [*(self._open or ()), line.removesuffix(_QUOTES)]
        self.prompt = ". "
        if line.endswith(_QUOTES):
            text = "\n".join(self._open)
            self.discard()
            self._ask(text)
        return True

    def discard(self) -> None:
        self._open, self.prompt = None, "> "

    def end(self) -> None:
        if self._open is not None:
            raise ParamsError(f"the last message has no {_QUOTES} at its end: it was not sent")

    def turn(self, typed: str) -> None:
        """Sends a message, or continues an answer that was cut off if the line is empty."""
        if typed.strip():
            self._ask(typed)
        elif self._last.end in _CUT:
            self._respond(self._last)
        else:
            note("(type a message; /help explains)")

    # ── commands ──────────────────────────────────────────────────────────────────────────────────

    def do_system(self, text: str = "") -> None:
        if text:
            self._use_system(None if text == "-" else text)
        note(f"system: {self._system[0].content}" if self._system else "(no system message)")

    def do_undo(self) -> None:
        self._undo_turn()
        last = self._messages[-1].content if self._messages else ""
        note(f"(the last answer is {_beginning(last)})" if self._messages else "(no messages)")

    def do_retry(self) -> None:
        before = (list(self._messages), list(self._begins), self._first, self._last)
        typed = self._undo_turn()
        try:
            self._ask(typed)
        except PipelineError:  # the system message may have become longer
            self._messages, self._begins, self._first, self._last = before
            raise

    def do_reset(self) -> None:
        self._clear()
        note("(a new conversation)")

    def do_text(self) -> None:
        show("".join(f"{message.role}: {message.content}\n" for message in [*self._system, *self._messages]))

    def do_save(self, text: str) -> None:
        if not self._messages:
            raise ParamsError("/save: there is no message yet")
        path = Path(text).expanduser()
        if path.exists():
            what = "is a folder: add the name of a file" if path.is_dir() else "exists: give another name"
            raise ParamsError(f"/save: {text} {what}")
        try:
            write_atomically(path, conversation_line([*self._system, *self._messages]))
        except (OSError, ValueError) as error:
            why = explain_os_error(error) if isinstance(error, OSError) else f"{text}: {error}"
            raise ParamsError(f"/save: {why}") from None
        note(f"(saved to {path})")

    # ── the conversation ──────────────────────────────────────────────────────────────────────────

    def _use_system(self, text: str | None) -> None:
        """Sets the system message, or removes it.

        Raises:
            ParamsError: the template has no place for one, or it is too long. The old one stays then.
        """
        new = [] if text is None else [Message("system", text)]
        size = len(self._ids([*new, Message("user", "")]))
        if size >= self._context:
            where = "the system message and the template have" if new else "the template has"
            raise ParamsError(f"{where} {size:,} tokens, but the model's context is only {self._context:,}")
        self._system = new

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        return prompt_ids(messages, self._tokenizer)

    def _undo_turn(self) -> str:
        """Removes the last turn; returns the user's message."""
        if not self._messages:
            raise ParamsError("there is no message to undo")
        typed = self._messages[-2].content
        del self._messages[-2:]
        self._first, self._last = self._begins.pop(), Answer("", [], "")
        return typed

    def _ask(self, text: str) -> None:
        """Adds a message of the user, and the answer.

        Raises:
            PipelineError: there is no answer; the conversation is as before.
        """
        before = (self._first, self._last)
        self._messages.append(Message("user", text))
        try:
            self._load([])
            if len(self._read) >= self._context:
                beside = "the template and the system message" if self._system else "the template"
                raise ParamsError(
                    f"the message is too long: with {beside} it has {len(self._read):,} tokens, but the model's "
                    f"context is only {self._context:,}: shorten it"
                )
            answer = self._draw(self._ends)
        except PipelineError:
            self._messages.pop()
            self._first, self._last = before
            raise
        self._begins.append(before[0])
        self._keep(answer)

    def _respond(self, last: Answer) -> None:
        """Continues the last answer."""
        said = self._messages.pop()
        try:
            self._load(last.ids)
            more = self._draw(self._ends)
        except PipelineError:
            self._messages.append(said)
            raise
        self._keep(Answer(last.text + more.text, [*last.ids, *more.ids], more.end))

    def _keep(self, answer: Answer) -> None:
        """Adds an answer to the conversation, and prints the end of its line."""
        self._messages.append(Message("assistant", answer.text))
        self._last = answer
        if not answer.text.endswith("\n"):
            show("\n")
        if answer.end in _CUT:
            note("(cut off: Enter continues)")
        if answer.end == "full":
            note("(context full: the answer ends here)")
        if self._first and not self._told:
            self._told = True
            note("(context full: the model sees only the last messages from now on)")

    # ── the context ───────────────────────────────────────────────────────────────────────────────

    def _load(self, answer: Sequence[int]) -> None:
        """Makes the tokens those of the messages that fit into the context, followed by the answer so far.

        If they do not fit, the oldest turns are left out until half a context is free: then several turns follow
        before that is computed again. System message and last question are always there.
        """
        ids = self._visible()
        if len(ids) + len(answer) >= self._context:
            while len(ids) + len(answer) > self._context // 2 and self._first < len(self._messages) - 1:
                self._first += 2
                ids = self._visible()
        self._prompt = len(ids)
        self._read.replace([*ids, *answer])

    def _visible(self) -> list[int]:
        return self._ids([*self._system, *self._messages[self._first :]])

    def _make_room(self) -> bool:
        if len(self._read) >= self._context:
            before = self._prompt
            self._load(self._read.tokens[0, self._prompt :].tolist())
            self._start += self._prompt - before
        return len(self._read) < self._context


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
