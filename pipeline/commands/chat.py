"""chat: an interactive session with the trained model.

With a chat template the model answers messages; without one, the user and the model write one text in turns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

import torch

from pipeline.commands.conversation import Conversation
from pipeline.commands.generate import check_stops, load_model, require_chat, show
from pipeline.commands.samplers import Settings, with_flags
from pipeline.commands.session import Session, note
from pipeline.commands.text_session import TextSession
from pipeline.core.errors import PipelineError
from pipeline.model.device import device_of
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import Params


def run(
    params: Params,
    paths: Paths,
    tokens: int | None = None,
    samplers: Sequence[str] = (),
    seed: int | None = None,
    stops: Sequence[str] = (),
    weights: str | None = None,
    precision: str = "auto",
    system: str | None = None,
    **flags: float | None,
) -> None:
    """Reads lines until end of input, and answers each, or continues the text after each.

    Arguments that are None come from params.evaluate; `flags` are temperature, top_k and top_p; `system` is the
    system message.
    """
    check_stops(stops)
    chosen, generation = params.evaluate.samplers, params.evaluate.generation
    registry = Registry.load(paths.plugins, ["models", "samplers"], note)
    settings = Settings(
        registry,
        *with_flags(registry, samplers or chosen.use, chosen.options, flags),
        tokens or generation.max_new_tokens,
    )
    checkpoint = load_model(params, paths, registry, weights, precision)
    generator = torch.Generator(device_of(checkpoint.model))
    generator.manual_seed(generation.seed if seed is None else seed)
    at_terminal = sys.stdin.isatty()
    session: Session
    if checkpoint.tokenizer.chat_template:
        session = Conversation(checkpoint, settings, generator, stops, system)
    else:
        if system is not None:
            require_chat(checkpoint, "--system")
        session = TextSession(checkpoint, settings, generator, stops, echo=not at_terminal)
    if at_terminal:
        with suppress(ImportError):  # arrow keys, history, several lines pasted; not every Python has readline
            import_module("readline").parse_and_bind("set enable-bracketed-paste on")
        note(f"{paths.shown(paths.checkpoint)}: the {checkpoint.weights} weights, of step {checkpoint.step:,}")
        note(f"{settings}")
        if not checkpoint.tokenizer.chat_template:
            note("this model was not trained on conversations: it continues your text")
        note("/help explains, Ctrl-D ends")
    for line in _lines(session, at_terminal):
        try:
            if not session.obey(line):
                break
        except PipelineError as error:
            _tell(error)
    try:
        session.end()
    except PipelineError as error:
        _tell(error)


def _tell(error: PipelineError) -> None:
    note(f"error: {' '.join(str(error).split())}")


def _lines(session: Session, at_terminal: bool) -> Iterator[str]:
    """Yields input lines until Ctrl-D. At a terminal, Ctrl-C only clears the current line."""
    while True:
        try:
            if at_terminal:
                yield input(session.prompt if sys.stdout.isatty() else "")
            else:
                yield next(sys.stdin).removesuffix("\n").removesuffix("\r")
        except (EOFError, StopIteration):
            if at_terminal:
                show("\n")
            return
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            show("\n")
            session.discard()
