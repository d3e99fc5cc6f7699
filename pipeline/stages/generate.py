"""generate: the trained model continues a prompt, shown as it is drawn, or several at once."""

from __future__ import annotations

import codecs
import sys
from typing import TYPE_CHECKING

import torch

from pipeline.console import printable
from pipeline.errors import ParamsError
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.device import choose_device, use_threads
from pipeline.model.generate import continuations, generate, quickest_precision
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.data.tokenizer import Tokenizer
    from pipeline.params import Params
    from pipeline.paths import Paths

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(
    params: Params,
    paths: Paths,
    prompts: Sequence[str],
    tokens: int | None = None,
    samplers: Sequence[str] = (),
    seed: int | None = None,
    weights: str | None = None,
    precision: str = "auto",
) -> None:
    """Prints the prompt and its continuation as it comes, or, of several prompts, each when all are done.

    What is None comes from params.evaluate. Each prompt's draws have a seed of their own, one up from the last.
    """
    own = params.evaluate
    registry = Registry.load(paths.plugins, ["samplers"])
    names = samplers or own.samplers.use
    chosen = registry.build_all("samplers", names, own.samplers.options, "evaluate.samplers")
    use_threads(params.runtime.threads)
    device = choose_device(params.runtime.device)
    checkpoint = load_checkpoint(paths.checkpoint, weights or own.weights, device)
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    model.to(_PRECISIONS.get(precision) or quickest_precision(model))
    starts = [_encoded(prompt, tokenizer) for prompt in prompts]
    seed = own.generation.seed if seed is None else seed
    generators = [torch.Generator(device).manual_seed(seed + number) for number in range(len(starts))]
    length, end = tokens or own.generation.max_new_tokens, tokenizer.end_of_text
    if len(starts) > 1:
        texts = continuations(model, starts, length, chosen, generators, end)
        for prompt, text in zip(prompts, texts, strict=True):
            _show(f"{prompt}{tokenizer.decode(text)}\n")
        return

    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end inside a character
    _show(prompts[0])
    for token in generate(model, torch.tensor(starts, device=device), length, chosen, generators[0], end):
        _show(decoder.decode(tokenizer.token_bytes[int(token)]))
    _show(decoder.decode(b"", final=True) + "\n")


def _encoded(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids; where there are none, the end of a document, after which another begins."""
    try:
        return [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text]
    except UnicodeEncodeError:
        raise ParamsError("the prompt is not UTF-8 text: check the terminal's encoding") from None


def _show(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()
