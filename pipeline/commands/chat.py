"""chat: an interactive session in which the user and the trained model write a text in turns."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pipeline.commands.decode import TextStream
from pipeline.commands.generate import check_stops, encoded, load_model, show
from pipeline.commands.samplers import with_flags, with_option
from pipeline.core.console import colourless, printable, wrapped
from pipeline.core.errors import ParamsError, PipelineError
from pipeline.model.device import device_of
from pipeline.model.generate import Decoder, SequenceState, draw
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.model.checkpoint import Checkpoint
    from pipeline.params.params import Params

_HELP = """\
What you type is added to the text, and the model continues the text. Your line
starts a new line of the text, or continues the current line if it starts with
a space. Enter alone lets the model continue. Ctrl-C stops the continuation,
Ctrl-D ends the session.
/undo              remove the last turn: your line and its continuation
/retry             generate another continuation of the last turn
/reset             start with an empty text
/text              show the text so far
/tokens N          set the number of tokens per turn
/set               show the settings
/set NAME VALUE    set a sampler's option: /set temperature 0.5; adds the sampler
/samplers NAME…    use these samplers, in this order
/quit              end the session
//…                add a line of text that starts with /"""


class _Settings:
    """The samplers with their options, and the number of tokens per turn."""

    def __init__(
        self,
        params: Params,
        paths: Paths,
        samplers: Sequence[str],
        tokens: int | None,
        flags: Mapping[str, float | None],
    ) -> None:
        evaluate_params = params.evaluate
        self.tokens = tokens or evaluate_params.generation.max_new_tokens
        self.registry = Registry.load(paths.plugins, ["models", "samplers"], _note)
        self.use(
            *with_flags(
                self.registry, samplers or evaluate_params.samplers.use, evaluate_params.samplers.options, flags
            )
        )

    def use(self, names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> None:
        """Replaces the samplers.

        Raises:
            ParamsError: a sampler does not exist, or an option is invalid. The settings are unchanged then.
        """
        self.samplers = self.registry.build_all("samplers", names, options, "samplers")
        self.names, self.options = list(names), options

    def change(self, key: str, value: str) -> None:
        """Sets the option `key` (`SAMPLER.OPTION`, or `SAMPLER` if it has a single option); adds the sampler if
        needed."""
        parsed: Any = value
        with suppress(ValueError):  # a value that is not JSON is a string
            parsed = json.loads(value)
        self.use(*with_option(self.registry, self.names, self.options, key, parsed))

    def __str__(self) -> str:
        return "; ".join(filter(None, [", ".join(map(_describe, self.samplers)), f"{self.tokens} tokens a turn"]))


def _describe(sampler: Any) -> str:
    values = sampler.model_dump()
    only = len(values) == 1
    return " ".join([sampler.name, *(f"{value}" if only else f"{name}={value}" for name, value in values.items())])


def run(
    params: Params,
    paths: Paths,
    tokens: int | None = None,
    samplers: Sequence[str] = (),
    seed: int | None = None,
    stops: Sequence[str] = (),
    weights: str | None = None,
    precision: str = "auto",
    **flags: float | None,
) -> None:
    """Reads lines until end of input, and continues the text after each.

    Arguments that are None come from params.evaluate; `flags` are temperature, top_k and top_p.
    """
    check_stops(stops)
    settings = _Settings(params, paths, samplers, tokens, flags)
    checkpoint = load_model(params, paths, settings.registry, weights, precision)
    generator = torch.Generator(device_of(checkpoint.model))
    generator.manual_seed(params.evaluate.generation.seed if seed is None else seed)
    at_terminal = sys.stdin.isatty()
    session = _Session(checkpoint, settings, generator, stops, echo=not at_terminal)
    if at_terminal:
        with suppress(ImportError):  # arrow keys and history; not every Python has readline
            import_module("readline")
        _note(f"{paths.shown(paths.checkpoint)}: the {checkpoint.weights} weights, of step {checkpoint.step:,}")
        _note(f"{settings}")
        _note("/help explains, Ctrl-D ends")
    for line in _lines(at_terminal):
        try:
            if not session.obey(line):
                break
        except PipelineError as error:
            _note(f"error: {' '.join(str(error).split())}")
    session.end()


class _Turn(NamedTuple):
    """The length of the text before a turn, in tokens and in characters, and the typed line."""

    tokens: int
    characters: int
    typed: str


class _Session:
    """The text so far, and the commands that change it. The method `do_NAME` is the command /NAME."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: _Settings,
        generator: torch.Generator,
        stops: Sequence[str],
        echo: bool,
    ) -> None:
        """With `echo`, input lines are printed as well: if stdin is not a terminal, nothing else shows them."""
        self._model, self._tokenizer = checkpoint.model, checkpoint.tokenizer
        self._settings, self._generator, self._stops, self._echo = settings, generator, stops, echo
        self._begin()

    def _begin(self) -> None:
        empty = torch.zeros(1, 0, dtype=torch.long, device=device_of(self._model))
        self._read, self._text, self._turns = Decoder(self._model, empty), "", list[_Turn]()

    def obey(self, line: str) -> bool:
        """Executes an input line; returns False if it ends the session."""
        if not line.startswith("/") or line.startswith("//"):
            self._turn(line.removeprefix("/"))
            return True
        name, *words = line[1:].split() or [""]
        if name == "quit":
            return False
        command: Callable[..., None] | None = getattr(self, f"do_{name}", None)
        if command is None:
            raise ParamsError(f"there is no command /{name}: /help lists the commands; //{name} adds text")
        try:
            signature(command).bind(*words)
        except TypeError:
            raise ParamsError(f"/{name}: wrong number of arguments: see /help") from None
        command(*words)
        return True

    def end(self) -> None:
        """Ends the last printed line."""
        if self._echo and self._text and not self._text.endswith("\n"):
            show("\n")

    def do_help(self) -> None:
        _note(_HELP)

    def do_undo(self) -> None:
        self._undo_turn()
        _note(f"(the text ends with {self._text[-40:]!r})" if self._text else "(an empty text)")

    def do_retry(self) -> None:
        self._turn(self._undo_turn().typed)

    def do_reset(self) -> None:
        self._begin()
        _note("(an empty text)")

    def do_text(self) -> None:
        show(self._text + "\n")

    def do_tokens(self, number: str) -> None:
        if not number.isdecimal() or not int(number):
            raise ParamsError(f"/tokens takes a number of 1 or more, not {number!r}")
        self._settings.tokens = int(number)
        _note(str(self._settings))

    def do_set(self, name: str = "", *value: str) -> None:
        if name == "tokens":
            self.do_tokens(" ".join(value))
            return
        if name:
            if not value:
                raise ParamsError(f"/set {name} needs a value")
            self._settings.change(name, " ".join(value))
        _note(str(self._settings))

    def do_samplers(self, *names: str) -> None:
        self._settings.use(names, self._settings.options)
        _note(str(self._settings))

    def _undo_turn(self) -> _Turn:
        if not self._turns:
            raise ParamsError("there is no turn to undo")
        turn = self._turns.pop()
        self._read.truncate(turn.tokens)
        self._text = self._text[: turn.characters]
        return turn

    def _turn(self, typed: str) -> None:
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

    def _add(self, ids: list[int]) -> None:
        self._read.add(torch.tensor([ids], dtype=torch.long, device=self._read.tokens.device))

    @torch.inference_mode()
    def _sample_token(self, start: int, state: SequenceState) -> int:
        """Samples the next token and adds it. The samplers receive the tokens in the model's context; those before
        `start` are the prompt."""
        read = self._read
        logits = read.logits()
        state.prompt_length = max(start - read.first_visible, 0)
        new = draw(logits, read.tokens[:, read.first_visible :], self._settings.samplers, self._generator, [state])
        read.add(new[:, None])
        return int(new)

    def _continue(self) -> None:
        read, stream = self._read, TextStream(self._tokenizer, self._stops)
        unseen, start, text, drawn, ended = read.first_visible, len(read), "", list[int](), False
        state = SequenceState(start)
        with _interrupts() as interrupts:
            while len(drawn) < self._settings.tokens and not (interrupts or ended or stream.stopped):
                token = self._sample_token(start, state)
                ended = token == self._tokenizer.end_of_text
                if not ended:
                    drawn.append(token)
                    new = stream.add(token)
                    show(new)
                    text += new
        rest = stream.finish()
        show(rest)
        text += rest
        if stream.stopped:  # the context must match the printed text
            kept = self._within(text, drawn)
            read.truncate(start + len(kept))
            self._add(list(map(int, self._tokenizer.encode(text[len(self._tokenizer.decode(kept)) :]))))
        self._text += text
        if not self._text.endswith("\n") and (ended or not self._echo):
            show("\n")
            self._text += "\n" * ended  # the next document starts on a new line
        if ended:
            _note("(end of text: what follows is a new document)")
        if read.first_visible > unseen:
            _note(f"(context full: the model no longer sees the first {read.first_visible:,} tokens)")

    def _within(self, text: str, ids: Sequence[int]) -> Sequence[int]:
        """The longest prefix of `ids` whose text is a prefix of `text`."""
        return next(
            ids[:count] for count in range(len(ids), -1, -1) if text.startswith(self._tokenizer.decode(ids[:count]))
        )


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects SIGINT signals, so that Ctrl-C does not raise KeyboardInterrupt in the middle of a token."""
    signals: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(at_terminal: bool) -> Iterator[str]:
    """Yields input lines until Ctrl-D. At a terminal, Ctrl-C only clears the current line."""
    prompt = "> " if sys.stdout.isatty() else ""
    while True:
        try:
            yield input(prompt) if at_terminal else next(sys.stdin).removesuffix("\n").removesuffix("\r")
        except (EOFError, StopIteration):
            if at_terminal:
                show("\n")
            return
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            show("\n")


def _note(text: str) -> None:
    """Prints a message on stderr, because it is not part of the text; dimmed at a terminal."""
    before, after = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() and not colourless() else ("", "")
    print(f"{before}{wrapped(printable(text), sys.stderr)}{after}", file=sys.stderr, flush=True)
