"""generate: the trained model continues a prompt, shown as it is drawn."""

from __future__ import annotations

import codecs
import sys
from typing import TYPE_CHECKING

import torch

from pipeline.console import printable
from pipeline.errors import ParamsError
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.device import choose_device, use_threads
from pipeline.model.generate import generate
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.params import Params
    from pipeline.paths import Paths


def run(
    params: Params,
    paths: Paths,
    prompt: str,
    tokens: int | None = None,
    samplers: Sequence[str] = (),
    seed: int | None = None,
    weights: str | None = None,
) -> None:
    """Prints the prompt and its continuation as it comes; what is None comes from params.evaluate."""
    own = params.evaluate
    registry = Registry.load(paths.plugins, ["samplers"])
    names = samplers or own.samplers.use
    chosen = registry.build_all("samplers", names, own.samplers.options, "evaluate.samplers")
    use_threads(params.runtime.threads)
    device = choose_device(params.runtime.device)
    checkpoint = load_checkpoint(paths.checkpoint, weights or own.weights, device)
    tokenizer = checkpoint.tokenizer
    try:
        start = [int(token) for token in tokenizer.encode(prompt)]
    except UnicodeEncodeError:
        raise ParamsError("the prompt is not UTF-8 text: check the terminal's encoding") from None
    ids = torch.tensor([start or [tokenizer.end_of_text]], device=device)
    generator = torch.Generator(device).manual_seed(own.generation.seed if seed is None else seed)

    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end inside a character
    _show(prompt)
    length = tokens or own.generation.max_new_tokens
    for token in generate(checkpoint.model, ids, length, chosen, generator, end=tokenizer.end_of_text):
        _show(decoder.decode(tokenizer.token_bytes[int(token)]))
    _show(decoder.decode(b"", final=True) + "\n")


def _show(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()
