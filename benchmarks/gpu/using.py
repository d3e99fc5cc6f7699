"""Evaluation and generation on a GPU: tokens per second of a GPT-2 of random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.gpu.part import MEASURED, Found
from benchmarks.ours import ROOT, SHAPES, params, tokenizer

if TYPE_CHECKING:
    from pipeline.model.architecture import LanguageModel


def _model(device: str, shape: str) -> LanguageModel:
    import torch

    from pipeline.train.components import Components

    torch.manual_seed(1)
    whole = params(SHAPES[shape], ())
    components = Components.load(whole, Path(ROOT) / "plugins")
    architecture = components.architecture(whole.model, tokenizer(SHAPES[shape]["vocab_size"]))
    return architecture.make().to(device).eval()


def evaluation(device: str, shape: str, quick: bool, precision: str = "fp32") -> Found:
    """The scores of windows that do not overlap, 16 at once: in "fp32" as for what is published, in "bf16" as
    evaluations during training compute them."""
    import numpy as np
    import torch

    from pipeline.data.batches import evaluation_windows
    from pipeline.data.masked import MaskedIds
    from pipeline.model.scoring import Summary, score

    model, length = _model(device, shape), SHAPES[shape]["context_length"]
    vocab_size = SHAPES[shape]["vocab_size"]
    ids = MaskedIds(np.random.default_rng(1).integers(0, vocab_size - 1, (2 if quick else 64) * length + 1))
    windows, lengths = evaluation_windows(len(ids), length, length), tokenizer(vocab_size).byte_lengths
    autocast = partial(torch.autocast, torch.device(device).type, torch.bfloat16) if precision == "bf16" else None
    loss = 0.0

    def work() -> int:
        nonlocal loss
        summary = Summary(lengths)
        for scores in score(model, ids, windows, 16, autocast=autocast):
            summary.add(scores)
        loss = summary.loss
        return summary.tokens

    return _found(work, device, quick, lambda: f"loss {loss:.4f}")


def generation(device: str, shape: str, prompts: int, quick: bool) -> Found:
    """Greedy generation after prompts of eight tokens, with the weights' dtype that `pipeline generate` chooses."""
    import torch

    from pipeline.model.generate import fastest_dtype, generate_batch

    model = _model(device, shape)
    dtype = fastest_dtype(model)
    model.to(dtype)
    asked = torch.randint(0, 256, (prompts, 8), generator=torch.Generator().manual_seed(1)).tolist()
    new = 4 if quick else 200

    def work() -> int:
        return sum(map(len, generate_batch(model, asked, new)))

    return _found(work, device, quick, lambda: f"weights in {str(dtype).removeprefix('torch.')}, {new} new tokens")


def _found(work: Callable[[], int], device: str, quick: bool, note: Callable[[], str]) -> Found:
    """The median rate of rounds of some work, which returns its number of tokens, after a first one."""
    import torch

    from benchmarks.measure import peak_memory

    work()
    rates = []
    for _ in range(1 if quick else 3):
        started = time.perf_counter()
        tokens = work()
        rates.append(tokens / (time.perf_counter() - started))
    return Found(
        MEASURED,
        note(),
        tokens_per_second=median(rates),
        peak_memory=torch.cuda.max_memory_allocated() if device != "cpu" else peak_memory(),
    )
