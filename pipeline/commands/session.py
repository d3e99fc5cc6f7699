"""What the sessions of `pipeline chat` share: the commands that change settings, and drawing an answer."""

from __future__ import annotations

import difflib
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import ClassVar

import torch

from pipeline.commands.decode import TextStream
from pipeline.commands.generate import show
from pipeline.commands.samplers import Settings
from pipeline.core.console import colourless, printable, wrapped
from pipeline.core.errors import ParamsError
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.device import device_of
from pipeline.model.generate import Decoder, SequenceState, draw

SETTINGS_HELP = """\
/tokens N          set the number of tokens per turn
/set               show the settings
/set NAME VALUE    set a sampler's option, and use it: /set temperature 0.5
/samplers NAME…    use these samplers, in this order
/quit              end the session"""


@dataclass(frozen=True)
class Answer:
    """What the model wrote.

    Attributes:
        text: The text, without a stop string.
        ids: The ids of the text.
        end: Why it ended: the meaning of the id that ended it, "stop" for a stop string, "interrupt" for Ctrl-C,
            "full" for the context, or "length".
    """

    text: str
    ids: Sequence[int]
    end: str


class Session(ABC):
    """An interactive session. The method `do_NAME` is the command /NAME; a parameter named `text` gets the rest of
    the line as it is, others get one word each.

    Attributes:
        help: What /help prints.
        prompt: What a terminal shows before the next line of input.
    """

    help: ClassVar[str]

    def __init__(
        self, checkpoint: Checkpoint, settings: Settings, generator: torch.Generator, stops: Sequence[str]
    ) -> None:
        self._model, self._tokenizer = checkpoint.model, checkpoint.tokenizer
        self._settings, self._generator, self._stops = settings, generator, stops
        self.prompt = "> "
        self._clear()

    @abstractmethod
    def turn(self, typed: str) -> None:
        """Handles a line that is no command."""

    def end(self) -> None:  # noqa: B027 - optional
        """Ends the session: there is no more input."""

    def discard(self) -> None:  # noqa: B027 - optional
        """Handles Ctrl-C while a line is typed."""

    def obey(self, line: str) -> bool:
        """Executes an input line; returns False if it ends the session.

        Raises:
            PipelineError: the line had no effect.
        """
        if not line.startswith("/") or line.startswith("//"):
            self.turn(line.removeprefix("/"))
            return True
        name, _, rest = line[1:].partition(" ")
        if name == "quit":
            return False
        command: Callable[..., None] | None = getattr(self, f"do_{name}", None)
        if command is None:
            raise ParamsError(f"there is no command /{name}: {self._like(name)}//{name} is text")
        takes = signature(command)
        words = ([rest.strip()] if rest.strip() else []) if "text" in takes.parameters else rest.split()
        try:
            takes.bind(*words)
        except TypeError:
            raise ParamsError(f"/{name}: wrong number of arguments: see /help") from None
        command(*words)
        return True

    def _like(self, name: str) -> str:
        if name in self._settings.registry.names("samplers"):
            return f"did you mean /set {name}? "
        names = [each.removeprefix("do_") for each in dir(self) if each.startswith("do_")]
        close = difflib.get_close_matches(name, [*names, "quit"], n=1)
        return f"did you mean /{close[0]}? " if close else "/help lists the commands; "

    def do_help(self) -> None:
        note(self.help)

    def do_tokens(self, number: str) -> None:
        if not number.isdecimal() or not int(number):
            raise ParamsError(f"/tokens takes a number of 1 or more, not {number!r}")
        self._settings.tokens = int(number)
        note(str(self._settings))

    def do_set(self, name: str = "", *value: str) -> None:
        if name == "tokens":
            self.do_tokens(" ".join(value))
            return
        if name:
            if not value:
                raise ParamsError(f"/set {name} needs a value")
            self._settings.change(name, " ".join(value))
        note(str(self._settings))

    def do_samplers(self, *names: str) -> None:
        self._settings.use(names, self._settings.options)
        note(str(self._settings))

    def _clear(self) -> None:
        """Begins with no tokens."""
        empty = torch.zeros(1, 0, dtype=torch.long, device=device_of(self._model))
        self._read, self._start = Decoder(self._model, empty), 0

    def _add(self, ids: Sequence[int]) -> None:
        self._read.add(torch.tensor([list(ids)], dtype=torch.long, device=self._read.tokens.device))

    def _make_room(self) -> bool:
        """Called before each draw; False ends the answer. `_start` is where the answer starts in the tokens."""
        return True

    def _draw(self, ends: Mapping[int, str]) -> Answer:
        """Draws an answer to the tokens so far, adds its ids to them and prints its text.

        It ends at an id of `ends`, which is not part of it, at a stop string, after the set number of tokens, or at
        Ctrl-C.
        """
        stream = TextStream(self._tokenizer, self._stops)
        self._start, state, ids, text, end = len(self._read), SequenceState(0), list[int](), "", ""
        with _interrupts() as interrupts:
            while not end:
                if interrupts:
                    end = "interrupt"
                elif len(ids) >= self._settings.tokens:
                    end = "length"
                elif not self._make_room():
                    end = "full"
                else:
                    token = self._sample(state)
                    end = ends.get(token, "")
                    if not end:
                        ids.append(token)
                        self._read.add(torch.full((1, 1), token, device=self._read.tokens.device))
                        new = stream.add(token)
                        show(new)
                        text += new
                        end = "stop" * stream.stopped
        rest = stream.finish()
        show(rest)
        text += rest
        if stream.stopped:  # the tokens must be those of the printed text
            ids = self._ids_of(text, ids)
            self._read.truncate(self._start)
            self._add(ids)
        return Answer(text, ids, end)

    @torch.inference_mode()
    def _sample(self, state: SequenceState) -> int:
        """Samples the next token. The samplers receive the tokens in the model's context; those before the answer
        are the prompt."""
        read = self._read
        logits = read.logits()
        state.prompt_length = max(self._start - read.first_visible, 0)
        visible = read.tokens[:, read.first_visible :]
        return int(draw(logits, visible, self._settings.samplers, self._generator, [state]))

    def _ids_of(self, text: str, ids: Sequence[int]) -> list[int]:
        """The longest prefix of `ids` whose text is a prefix of `text`, and the ids of the rest of the text."""
        decode = self._tokenizer.decode
        kept = next(ids[:count] for count in range(len(ids), -1, -1) if text.startswith(decode(ids[:count])))
        return [*kept, *map(int, self._tokenizer.encode(text[len(decode(kept)) :]))]


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects SIGINT signals, so that Ctrl-C does not raise KeyboardInterrupt in the middle of a token."""
    signals: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, before)


def note(text: str) -> None:
    """Prints a message on stderr, because it is not part of the text; dimmed at a terminal."""
    before, after = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() and not colourless() else ("", "")
    print(f"{before}{wrapped(printable(text), sys.stderr)}{after}", file=sys.stderr, flush=True)
