"""generate: continues prompts, or answers messages: one, printed token by token, or many in batches."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from pipeline.commands.decode import TextStream
from pipeline.commands.prompts import conversation_line
from pipeline.commands.samplers import with_flags
from pipeline.core.console import json_line, printable
from pipeline.core.errors import DataError, ParamsError
from pipeline.data.parts import prompt_ids, turn_ends
from pipeline.model.checkpoint import Checkpoint, load_checkpoint
from pipeline.model.device import choose_device, device_of, use_threads
from pipeline.model.generate import fastest_dtype, generate_batch
from pipeline.plugin.components import Message
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


Prompt = str | Sequence[Message]
"""A text to continue, or a conversation to answer."""


@dataclass(frozen=True)
class Continuation:
    """A continuation of a prompt.

    Attributes:
        prompt: The prompt.
        sample: The number of the continuation of this prompt, from 1.
        seed: Its random seed. Generated alone with this seed, it is the same text.
        continuation: The new text, without the stop string.
        tokens: The number of sampled tokens, those of the stop string included.
        finish_reason: `length`, `stop`, `end_of_text`, or `end_of_turn` for an answer.
    """

    prompt: Prompt
    sample: int
    seed: int
    continuation: str = ""
    tokens: int = 0
    finish_reason: str = ""

    @property
    def text(self) -> str:
        """What is shown: a prompt with its continuation, or an answer alone."""
        return self.prompt + self.continuation if isinstance(self.prompt, str) else self.continuation

    def line(self) -> str:
        """A line of JSON. For an answer it is the whole conversation."""
        if isinstance(self.prompt, str):
            return json_line(asdict(self))
        more = {"sample": self.sample, "seed": self.seed, "tokens": self.tokens}
        messages = [*self.prompt, Message("assistant", self.continuation)]
        return conversation_line(messages, {**more, "finish_reason": self.finish_reason})


def run(
    params: Params,
    paths: Paths,
    prompts: Sequence[Prompt],
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
    if not isinstance(prompts[0], str):
        require_chat(checkpoint, "--chat")
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
            sys.stdout.write(each.line())
            sys.stdout.flush()
            continue
        title = f"── sample {each.sample} of {num_samples}, seed {each.seed} ──\n" if num_samples > 1 else ""
        show("\n" if live else f"{title}{each.text}\n")


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


def require_chat(checkpoint: Checkpoint, option: str) -> None:
    """Raises ParamsError, which names the option, unless the tokenizer has a chat template."""
    try:
        checkpoint.tokenizer.chat  # noqa: B018
    except DataError as error:
        raise ParamsError(f"{option}: {error}") from None


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
    starts = [_ids(each.prompt, checkpoint) for each in requests]  # errors come before any output
    chat = not isinstance(requests[0].prompt, str)
    ends = turn_ends(tokenizer) if chat else {tokenizer.end_of_text: "end_of_text"}
    streams = [TextStream(tokenizer, stops) for _ in requests]
    texts, counts, reasons = [""] * len(requests), [0] * len(requests), ["length"] * len(requests)

    def add(number: int, new: str) -> None:
        texts[number] += new
        if live:
            show(new)

    def should_stop(first: int, row: int, token: int) -> bool:
        number = first + row
        if token in ends:
            reasons[number] = ends[token]
            return True
        counts[number] += 1
        add(number, streams[number].add(token))
        if streams[number].stopped:
            reasons[number] = "stop"
            return True
        full = len(starts[number]) + counts[number] >= model.architecture.shape.context_length
        return chat and full  # a text continues from the later half of the context, an answer needs its question

    if live and isinstance(requests[0].prompt, str):
        show(requests[0].prompt)
    rows = _rows_at_once(model)
    for first in range(0, len(requests), rows):
        batch = requests[first : first + rows]
        generators = [torch.Generator(device).manual_seed(each.seed) for each in batch]
        generate_batch(
            model,
            starts[first : first + rows],
            length,
            samplers,
            generators,
            should_stop=partial(should_stop, first),
        )
        for number, each in enumerate(batch, first):
            add(number, streams[number].finish())
            yield replace(each, continuation=texts[number], tokens=counts[number], finish_reason=reasons[number])


def _ids(prompt: Prompt, checkpoint: Checkpoint) -> list[int]:
    """The ids of a prompt.

    Raises:
        ParamsError, DataError: the prompt is not UTF-8; the template cannot render a conversation, or it leaves no
            room for an answer in the model's context.
    """
    if isinstance(prompt, str):
        return encoded(prompt, checkpoint.tokenizer)
    ids, context = prompt_ids(prompt, checkpoint.tokenizer), checkpoint.model.architecture.shape.context_length
    if len(ids) >= context:
        raise DataError(
            f"the conversation that ends with {prompt[-1].content[-40:]!r} is too long: it has {len(ids):,} "
            f"tokens, but the model's context is only {context:,}: shorten it"
        )
    return ids


def _rows_at_once(model: LanguageModel) -> int:
    shape = model.architecture.shape
    numbers = (
        2 * shape.n_layers * shape.context_length * shape.emb_dim
    )  # keys and values, where no head shares them
    row = numbers * next(model.parameters()).element_size()
    return max(1, _CACHE_BYTES // row)
