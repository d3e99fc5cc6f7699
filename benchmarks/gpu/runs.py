"""Small training runs on a device, as the checks of the GPU benchmark need them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.part import LeftOutError
from benchmarks.ours import prepared

if TYPE_CHECKING:
    import numpy as np

    from pipeline.train.run import TrainingRun

SMALL = {"vocab_size": 512, "context_length": 64, "n_layers": 2, "n_heads": 2, "emb_dim": 64, "batch_size": 4}
"""A model that trains in no time; its head size of 32 is one that all fused kernels take."""

FP32 = ("train.precision=fp32",)


def sentences(count: int = 20_000) -> np.ndarray[Any, Any]:
    """Ids with something to learn: documents of 7 to 60 tokens, in which each token follows from the one before."""
    import numpy as np

    draw = np.random.default_rng(1)
    parts: list[np.ndarray[Any, Any]] = []
    while sum(map(len, parts)) < count:
        size, first = int(draw.integers(7, 60)), int(draw.integers(0, 64))
        parts.append(np.append((first + 5 * np.arange(size)) % 64, SMALL["vocab_size"] - 1))
    return np.concatenate(parts)[:count].astype("<u2")


def small_run(device: str, *overrides: str, folder: Path = Path("unused")) -> TrainingRun:
    """A run of the small model in float32, eager, unless `overrides` say otherwise.

    Raises:
        LeftOutError: this machine, or this version, has no such setting.
    """
    from pipeline.core.errors import ParamsError

    settings = (
        f"runtime.device={device}", "runtime.compile=false", "runtime.threads=1", *FP32, "train.grad_clip=1.0",
        "train.micro_batch_size=2", "train.optimizer.adamw.lr=3e-3", *overrides,
    )  # fmt: skip
    try:
        return prepared(SMALL, settings, sentences(), folder)
    except ParamsError as error:
        raise LeftOutError(" ".join(str(error).split())[:200]) from None


def trained(run: TrainingRun, steps: int) -> list[float]:
    """Takes steps; returns the loss of each, in nats per token."""
    from pipeline.train.loop import train_step
    from pipeline.train.state import TrainState

    state = TrainState()
    return [nats / tokens for nats, tokens in (train_step(run, state) for _ in range(steps))]


def assert_lowered(losses: list[float], by: float = 0.1) -> str:
    """Asserts that the loss fell by at least `by` nats; returns what it did."""
    text = f"loss {losses[0]:.3f} → {losses[-1]:.3f}"
    assert losses[-1] < losses[0] - by, f"{text}: it did not fall by {by}"
    return text


def assert_close(ours: list[float], others: list[float], tolerance: float, names: str) -> str:
    """Asserts that two lists of losses are equal up to `tolerance` nats; returns their largest difference."""
    largest = max(abs(one - other) for one, other in zip(ours, others, strict=True))
    text = f"largest difference {largest:.1e} nats in {len(ours)} steps"
    assert largest <= tolerance, f"{names}: {text}, more than {tolerance:.0e}"
    return text
