"""generate: the trained model continues a prompt, shown as it is drawn, or many, several at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.commands.decode import TextStream
from pipeline.core.console import json_line, printable
from pipeline.core.errors import DataError, ParamsError
from pipeline.model.checkpoint import Checkpoint, load_checkpoint
from pipeline.model.device import choose_device, use_threads
from pipeline.model.generate import continuations, generate, quickest_precision
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.model.generate import SamplerLike
    from pipeline.model.gpt import GPT
    from pipeline.params.params import Params

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_CACHE_BYTES = 1 << 30
"""What the keys and values of the texts that are continued at once may take."""


@dataclass(frozen=True)
class Continuation:
    """What followed a prompt.

    Attributes:
        prompt: The prompt.
        sample: Which of its continuations this is, from 1.
        seed: The seed of its draws: with this one alone, the same text comes out.
        continuation: The text that followed, without a stop string.
        tokens: How many were drawn, those of a stop string included.
        finish_reason: Why it ended: `length`, `stop` or `end_of_text`.
    """

    prompt: str
    sample: int
    seed: int
    continuation: str = ""
    tokens: int = 0
    finish_reason: str = ""


def run(
    params: Params,
    paths: Paths,
    prompts: Sequence[str],
    tokens: int | None = None,
    samplers: Sequence[str] = (),
    seed: int | None = None,
    weights: str | None = None,
    precision: str = "auto",
    num_samples: int = 1,
    stops: Sequence[str] = (),
    as_json: bool = False,
) -> None:
    """Prints the prompt and its continuation as it comes, or, of several, each when it is done.

    What is None comes from params.evaluate. Each continuation's draws have a seed of their own, one up from the
    last: with it, the same text comes out alone.
    """
    own = params.evaluate
    check_stops(stops)
    registry = Registry.load(paths.plugins, ["samplers"], lambda note: print(printable(note), file=sys.stderr))
    names = samplers or own.samplers.use
    chosen = registry.build_all("samplers", names, own.samplers.options, "evaluate.samplers")
    checkpoint = load_model(params, paths, weights, precision)
    first = own.generation.seed if seed is None else seed
    wanted = [
        Continuation(prompt, sample + 1, first + number * num_samples + sample)
        for number, prompt in enumerate(prompts)
        for sample in range(num_samples)
    ]
    length = tokens or own.generation.max_new_tokens
    if len(wanted) == 1 and not as_json:
        _stream(checkpoint, wanted[0], length, chosen, stops)
        return
    for each in _continued(checkpoint, wanted, length, chosen, stops):
        if as_json:
            sys.stdout.write(json_line(asdict(each)))
        elif num_samples > 1:
            show(f"── sample {each.sample} of {num_samples}, seed {each.seed} ──\n")
        if not as_json:
            show(f"{each.prompt}{each.continuation}\n")
        sys.stdout.flush()


def load_model(params: Params, paths: Paths, weights: str | None, precision: str) -> Checkpoint:
    """The checkpoint that is generated with; `weights` None are those of params.evaluate, `precision` auto is what
    is quickest."""
    use_threads(params.runtime.threads)
    device = choose_device(params.runtime.device)
    checkpoint = load_checkpoint(paths.checkpoint, weights or params.evaluate.weights, device)
    checkpoint.model.to(_PRECISIONS.get(precision) or quickest_precision(checkpoint.model))
    return checkpoint


def check_stops(stops: Sequence[str]) -> None:
    """Raises ParamsError for a stop string that no text can hold, or every text does."""
    for stop in stops:
        if not stop:
            raise ParamsError("--stop: an empty text would stop at once: give it a character at least")
        if stop != stop.encode(errors="ignore").decode():
            raise ParamsError("--stop: it is not UTF-8 text: check the terminal's encoding")


def read_prompts(file: str) -> list[str]:
    """The prompts of a file, one a line, or of the standard input ("-"); blank lines are left out.

    Raises:
        DataError: there is none, or the bytes are not UTF-8.
    """
    name, data = ("the standard input", sys.stdin.buffer.read()) if file == "-" else (file, Path(file).read_bytes())
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 at byte {error.start:,}: convert it") from None
    prompts = [line.removesuffix("\r") for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{name} holds no prompt: write one on each line")
    return prompts


def encoded(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids; where there are none, the end of a document, after which another begins."""
    try:
        return [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text]
    except UnicodeEncodeError:
        raise ParamsError("the prompt is not UTF-8 text: check the terminal's encoding") from None


def show(text: str) -> None:
    """Prints text at once, made harmless."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def _stream(
    checkpoint: Checkpoint, wanted: Continuation, length: int, samplers: Sequence[SamplerLike], stops: Sequence[str]
) -> None:
    """Shows a prompt and what follows, token by token."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    device = model.head_weight.device
    start = torch.tensor([encoded(wanted.prompt, tokenizer)], device=device)
    generator = torch.Generator(device).manual_seed(wanted.seed)
    text = TextStream(tokenizer, stops)
    show(wanted.prompt)
    for token in generate(model, start, length, samplers, generator, tokenizer.end_of_text):
        show(text.add(int(token)))
        if text.stopped:
            break
    show(text.finish() + "\n")


def _continued(
    checkpoint: Checkpoint,
    wanted: Sequence[Continuation],
    length: int,
    samplers: Sequence[SamplerLike],
    stops: Sequence[str],
) -> Iterator[Continuation]:
    """Each continuation in order; as many are computed at once as memory is set aside for."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    device = model.head_weight.device
    starts = {each.prompt: encoded(each.prompt, tokenizer) for each in wanted}  # all of them: an error comes first
    rows = _rows_at_once(model)
    for first in range(0, len(wanted), rows):
        batch = wanted[first : first + rows]
        streams = [TextStream(tokenizer, stops) for _ in batch]
        texts = ["" for _ in batch]

        def enough(row: int, token: int, streams: list[TextStream] = streams, texts: list[str] = texts) -> bool:
            texts[row] += streams[row].add(token)
            return streams[row].stopped

        drawn = continuations(
            model,
            [starts[each.prompt] for each in batch],
            length,
            samplers,
            [torch.Generator(device).manual_seed(each.seed) for each in batch],
            tokenizer.end_of_text,
            enough,
        )
        for each, ids, stream, text in zip(batch, drawn, streams, texts, strict=True):
            reason = "stop" if stream.stopped else "end_of_text" if len(ids) < length else "length"
            yield Continuation(each.prompt, each.sample, each.seed, text + stream.finish(), len(ids), reason)


def _rows_at_once(model: GPT) -> int:
    config = model.config
    numbers = config.n_layers * config.context_length * config.kv_heads * config.head_dim
    row = 2 * numbers * model.head_weight.element_size()  # keys and values
    return max(1, _CACHE_BYTES // row)
