"""Training on a GPU: tokens per second and peak memory, ours and nanoGPT's, and the rate of matrix products."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from statistics import median

from benchmarks.gpu.part import MEASURED, Found
from benchmarks.ours import SHAPES, prepared

_GROUPS, _GROUP_SECONDS = 5, 1.0
"""Groups of steps that are timed, the result being their median, and the seconds that a group takes."""

Prepared = tuple[Callable[[], object], float]
"""A step, and the floating-point operations that a token costs."""


def gemm(device: str, quick: bool) -> Found:
    """The best rate of bf16 matrix products of several large sizes."""
    import torch

    best = 0.0
    for size in (512,) if quick else (4096, 8192, 12288):
        a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            a @ b

        best = max(best, *_rates(product, 2 * size**3, device, quick))
    return Found(MEASURED, f"{best / 1e12:,.1f} TFLOP/s", flops=best)


def ours(device: str, shape: str, compile: str, quick: bool) -> Found:
    """A step of the training loop, with the params of the preset gpt2-124m except for the sizes.

    Args:
        device: "cuda" or "cpu".
        shape: A name in SHAPES.
        compile: `runtime.compile`.
        quick: Whether only to try the code.
    """
    from pipeline.train.loop import take_step
    from pipeline.train.pending import Pending
    from pipeline.train.state import TrainState

    def build(batch_size: int) -> Prepared:
        overrides = (
            f"runtime.device={device}", f"runtime.compile={compile}", "train.precision=bf16", "train.grad_clip=1.0",
        )  # fmt: skip
        run, state = prepared({**SHAPES[shape], "batch_size": batch_size}, overrides), TrainState()
        pending = Pending(run, state)  # as in the loop: a step's numbers are read after the next one was started
        return lambda: take_step(run, state, pending), run.model.architecture.flops_per_token

    return _measured(build, device, shape, quick)


def nanogpt(device: str, shape: str, compile: bool, code: str, quick: bool) -> Found:
    """nanoGPT's model and optimizer, as in its train.py on a GPU: bf16 autocast, clipping, fused AdamW.

    Args:
        device, shape, quick: As for `ours`.
        compile: Whether the model is compiled.
        code: The folder of a clone.
    """
    import torch

    sys.path.insert(0, code)
    from model import GPT, GPTConfig

    sizes, kind = SHAPES[shape], torch.device(device).type
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def build(batch_size: int) -> Prepared:
        config = GPTConfig(
            block_size=sizes["context_length"], vocab_size=sizes["vocab_size"], n_layer=sizes["n_layers"],
            n_head=sizes["n_heads"], n_embd=sizes["emb_dim"], dropout=0.0, bias=True,
        )  # fmt: skip
        model = GPT(config).to(device)
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), kind)
        called = torch.compile(model) if compile else model
        length = sizes["context_length"] + 1
        tokens = torch.randint(0, sizes["vocab_size"], (batch_size, length), device=device)
        x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        count = sum(each.numel() for each in model.parameters()) - model.transformer.wpe.weight.numel()  # tied head
        flops = 6 * count + 12 * sizes["n_layers"] * sizes["context_length"] * sizes["emb_dim"]

        def step() -> None:
            with torch.autocast(kind, torch.bfloat16):
                loss = called(x, y)[1]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step, flops

    return _measured(build, device, shape, quick)


def _measured(build: Callable[[int], Prepared], device: str, shape: str, quick: bool) -> Found:
    """Measures with the shape's batch size; out of memory, with half of it, and so on."""
    import torch

    from pipeline.core.errors import ParamsError

    batch_size, notes = SHAPES[shape]["batch_size"], ""
    while True:
        try:
            return _with_batch(build, batch_size, notes, device, shape, quick)
        except (torch.OutOfMemoryError, ParamsError):  # ParamsError: the memory check refuses it
            if batch_size == 1:
                raise
        notes = f", out of memory with {batch_size}"
        batch_size //= 2
        if device != "cpu":
            torch.cuda.empty_cache()


def _with_batch(
    build: Callable[[int], Prepared], batch_size: int, notes: str, device: str, shape: str, quick: bool
) -> Found:
    import torch

    from benchmarks.measure import peak_memory

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    step, flops = build(batch_size)
    started = time.perf_counter()
    step()
    _wait(device)
    first = time.perf_counter() - started
    rates = _rates(step, batch_size * SHAPES[shape]["context_length"], device, quick)
    spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
    return Found(
        MEASURED,
        f"batch {batch_size}{notes}, {spread} tokens/s, first step {first:.1f} s",
        tokens_per_second=median(rates),
        flops_per_token=flops,
        peak_memory=torch.cuda.max_memory_allocated() if device != "cpu" else peak_memory(),
    )


def _rates(step: Callable[[], object], work: float, device: str, quick: bool) -> list[float]:
    """The work per second of each group of steps; a step does `work`."""
    count = 1
    for warm in range(1 if quick else 3):
        _wait(device)
        started = time.perf_counter()
        for _ in range(count):
            step()
        _wait(device)
        taken = (time.perf_counter() - started) / count
        if not quick and warm:  # the first ones may compile
            count = max(1, math.ceil(_GROUP_SECONDS / taken))
    rates = []
    for _ in range(2 if quick else _GROUPS):
        started = time.perf_counter()
        for _ in range(count):
            step()
        _wait(device)
        rates.append(count * work / (time.perf_counter() - started))
    return rates


def _wait(device: str) -> None:
    """Waits for the GPU: calls return before their work is done."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
