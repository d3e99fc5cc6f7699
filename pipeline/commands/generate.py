"""generate: continues one prompt, printed token by token, or many prompts in batches."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.commands.decode import TextStream
from pipeline.commands.samplers import with_flags
from pipeline.core.console import json_line, printable
from pipeline.core.errors import DataError, ParamsError
from pipeline.model.checkpoint import Checkpoint, load_checkpoint
from pipeline.model.device import choose_device, device_of, use_threads
from pipeline.model.generate import fastest_dtype, generate_batch
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.model.architecture import LanguageModel
    from pipeline.model.generate import SamplerLike
    from pipeline.params.params import Params

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_CACHE_BYTES = 1 << 30
"""The maximum memory for the key-value caches of one batch."""


@dataclass(frozen=True)
class Continuation:
    """A continuation of a prompt.

    Attributes:
        prompt: The prompt.
        sample: The number of the continuation of this prompt, from 1.
        seed: Its random seed. Generated alone with this seed, it is the same text.
        continuation: The new text, without the stop string.
        tokens: The number of sampled tokens, those of the stop string included.
        finish_reason: `length`, `stop` or `end_of_text`.
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
    **flags: float | None,
) -> None:
    """Prints a prompt with its continuation token by token, or several continuations, each when it is complete.

    Arguments that are None come from params.evaluate; `flags` are temperature, top_k and top_p. Each continuation
    has its own seed, one more than the previous one; generated alone with that seed, it is the same text.
    """
    evaluate_params = params.evaluate
    check_stops(stops)
    registry = Registry.load(
        paths.plugins, ["models", "samplers"], lambda note: print(printable(note), file=sys.stderr)
    )
    names, options = with_flags(
        registry, samplers or evaluate_params.samplers.use, evaluate_params.samplers.options, flags
    )
    chosen = registry.build_all("samplers", names, options, "evaluate.samplers")
    checkpoint = load_model(params, paths, registry, weights, precision)
    first = evaluate_params.generation.seed if seed is None else seed
    requests = [
        Continuation(prompt, sample + 1, first + number * num_samples + sample)
        for number, prompt in enumerate(prompts)
        for sample in range(num_samples)
    ]
    length = tokens or evaluate_params.generation.max_new_tokens
    live = len(requests) == 1 and not as_json
    for each in _generate(checkpoint, requests, length, chosen, stops, live):
        if as_json:
            sys.stdout.write(json_line(asdict(each)))
            sys.stdout.flush()
            continue
        title = f"── sample {each.sample} of {num_samples}, seed {each.seed} ──\n" if num_samples > 1 else ""
        show("\n" if live else f"{title}{each.prompt}{each.continuation}\n")


def load_model(params: Params, paths: Paths, registry: Registry, weights: str | None, precision: str) -> Checkpoint:
    """Loads the checkpoint. `weights` None: those of params.evaluate; `precision` "auto": the fastest one."""
    use_threads(params.runtime.threads)
    device = choose_device(params.runtime.device)
    checkpoint = load_checkpoint(paths.checkpoint, weights or params.evaluate.weights, device, registry)
    checkpoint.model.to(_PRECISIONS.get(precision) or fastest_dtype(checkpoint.model))
    return checkpoint


def check_stops(stops: Sequence[str]) -> None:
    """Raises ParamsError for a stop string that is empty or not UTF-8."""
    for stop in stops:
        if not stop:
            raise ParamsError("--stop: the text is empty: give at least one character")
        if stop != stop.encode(errors="ignore").decode():
            raise ParamsError("--stop: the text is not UTF-8: check the terminal's encoding")


def read_prompts(file: str) -> list[str]:
    """Reads prompts from a file or standard input ("-"), one per line; blank lines are skipped.

    Raises:
        DataError: there is no prompt, or the bytes are not UTF-8.
    """
    name, data = ("the standard input", sys.stdin.buffer.read()) if file == "-" else (file, Path(file).read_bytes())
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 at byte {error.start:,}: convert it") from None
    prompts = [line.removesuffix("\r") for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{name} has no prompt: write one per line")
    return prompts


def encoded(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of the prompt; for an empty prompt the end-of-text id, after which a new document starts.

    Raises:
        ParamsError: the prompt is not UTF-8.
    """
    try:
        return [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text]
    except UnicodeEncodeError:
        raise ParamsError("the prompt is not UTF-8 text: check the terminal's encoding") from None


def show(text: str) -> None:
    """Prints text immediately, with control characters escaped."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def _generate(
    checkpoint: Checkpoint,
    requests: Sequence[Continuation],
    length: int,
    samplers: Sequence[SamplerLike],
    stops: Sequence[str],
    live: bool,
) -> Iterator[Continuation]:
    """Yields the continuations in order. They are computed in batches as large as `_CACHE_BYTES` allows.

    With `live` (a single continuation), the prompt and each new piece of text are printed immediately.
    """
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    device = device_of(model)
    starts = [
        encoded(each.prompt, tokenizer) for each in requests
    ]  # encode all prompts first, so that errors come before any output
    streams = [TextStream(tokenizer, stops) for _ in requests]
    texts = [""] * len(requests)

    def add(number: int, new: str) -> None:
        texts[number] += new
        if live:
            show(new)

    def should_stop(first: int, row: int, token: int) -> bool:
        stream = streams[first + row]
        add(first + row, stream.add(token))
        return stream.stopped

    if live:
        show(requests[0].prompt)
    rows = _rows_at_once(model)
    for first in range(0, len(requests), rows):
        drawn = generate_batch(
            model,
            starts[first : first + rows],
            length,
            samplers,
            [torch.Generator(device).manual_seed(each.seed) for each in requests[first : first + rows]],
            tokenizer.end_of_text,
            partial(should_stop, first),
        )
        for number, ids in enumerate(drawn, first):
            stream = streams[number]
            add(number, stream.finish())
            reason = "stop" if stream.stopped else "end_of_text" if len(ids) < length else "length"
            yield replace(requests[number], continuation=texts[number], tokens=len(ids), finish_reason=reason)


def _rows_at_once(model: LanguageModel) -> int:
    shape = model.architecture.shape
    numbers = (
        2 * shape.n_layers * shape.context_length * shape.emb_dim
    )  # keys and values, where no head shares them
    row = numbers * next(model.parameters()).element_size()
    return max(1, _CACHE_BYTES // row)
