"""Training steps on a CUDA device that computes nothing (fake_cuda.cpp): a process of test_fake_cuda.py.

torch's FakeTensorMode knows the device, dtype and shape of each tensor. It raises where an operation mixes devices,
and where the host reads a value of the device, which would make it wait.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from conftest import REPOSITORY
from small_config import ARCHITECTURES, small_config
from small_run import ARCHITECTURE, PACKED, make_run, runtime_config
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.distributed.ranks import Ranks
from pipeline.model.architecture import Architecture, LanguageModel
from pipeline.plugin.registry import Registry
from pipeline.train.loop import train_step
from pipeline.train.pending import StepNumbers
from pipeline.train.run import TrainingRun, parallelize
from pipeline.train.state import TrainState

CUDA = torch.device("cuda", 0)
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIMIZERS = Registry.load(REPOSITORY / "plugins", ["optimizers"])


def on_cuda(architecture: Architecture) -> LanguageModel:
    """A model that is built on the device: fake parameters cannot be moved."""
    with CUDA:
        return architecture.make()


def step(
    model: str, optimizer: str = "adamw", precision: str = "bf16", recompute: bool = False, **sizes: Any
) -> None:
    """Forward pass, loss, backward pass, clipping and optimizer."""
    architecture = small_config(model, vocab_size=70, n_layers=1, **sizes)
    config = runtime_config(device="cuda:0", recompute=recompute)
    parallel = parallelize(lambda: on_cuda(architecture), Ranks(), config)
    parallel.model.train()
    named = list(parallel.model.named_parameters())
    optimiser = OPTIMIZERS.build("optimizers", optimizer, {}, "train").build(named)
    ids, targets = (torch.zeros(3, 64, dtype=torch.long, device=CUDA) for _ in range(2))
    dtype = DTYPES[precision]
    for _ in range(2):
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            nats = parallel.forward(ids).cross_entropy(targets).sum()
        (nats / 192).backward()
        parallel.clip(1.0)
        optimiser.step()
    assert nats.device == CUDA
    assert all(each.grad is not None and each.grad.device == CUDA for _, each in named)


def read_with_cache(model: str, **sizes: Any) -> None:
    """Tokens with the cache of earlier ones, as in generation."""
    made: Any = on_cuda(small_config(model, vocab_size=70, n_layers=1, **sizes)).eval()
    with torch.inference_mode():
        cache = made.make_cache(2)
        for count in (5, 1, 3):
            logits = made(torch.zeros(2, count, dtype=torch.long, device=CUDA), cache).logits
        assert logits.device == CUDA


def loop_step(architecture: Architecture = ARCHITECTURE, **changes: Any) -> None:
    """A step of the training loop, with two micro-batches, until its numbers are sent to the host."""
    sent: list[torch.Tensor] = []

    def stop_here(row: Any, tokens: int, losses: list[torch.Tensor], norm: torch.Tensor) -> None:
        sent.extend((*losses, norm))
        raise StopIteration

    def fake(run: TrainingRun, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(ids.shape, dtype=ids.dtype, device=CUDA)

    ids = mock.patch.object(TrainingRun, "to_device", fake)
    with TemporaryDirectory() as folder, ids, mock.patch.object(StepNumbers, "sent", stop_here):
        run = make_run(Path(folder), make=lambda: on_cuda(architecture), **changes)
        run.model.train()
        with contextlib.suppress(StopIteration):
            train_step(run, TrainState())
    assert [each.device for each in sent] == 3 * [CUDA]


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """The cases by name."""
    for model in ARCHITECTURES:
        yield f"{model}, bf16", partial(step, model)
        yield f"{model}, fp16", partial(step, model, precision="fp16", dropout=0.1, recompute=True)
        yield f"{model}, fp32, masked", partial(step, model, precision="fp32", document_end=0)
        yield f"{model}, cache", partial(read_with_cache, model)
        yield f"{model}, cache, masked", partial(read_with_cache, model, document_end=0)
    yield "loop", partial(loop_step, precision="bf16", grad_clip=1.0)
    yield "loop, packed", partial(loop_step, **PACKED)
    # Adafactor reads its step, a tensor of the host, which as a fake tensor has no value.
    for optimizer in sorted(set(OPTIMIZERS.names("optimizers")) - {"adafactor", "adamw"}):
        yield optimizer, partial(step, "gpt2", optimizer, "fp32")


def mixed_devices() -> None:
    """What must fail, or this test would find nothing."""
    (torch.zeros(2, device=CUDA) + torch.zeros(2)).sum()


def read_value() -> None:
    torch.zeros(2, device=CUDA).sum().item()


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Fake tensors, with an autocast that believes in the GPU and modules that stay where they are."""
    with (
        FakeTensorMode(),
        mock.patch.object(torch.nn.Module, "to", lambda module, *_: module),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
    ):
        yield


def main() -> None:
    """Prints the failure of each case that fails, and of the two that must, as JSON."""
    failures: dict[str, str] = {}
    for name, case in [*cases(), ("mixed devices", mixed_devices), ("value read", read_value)]:
        try:
            with stand_in(), contextlib.redirect_stdout(sys.stderr):
                case()
        except Exception as error:
            print(name, file=sys.stderr)
            traceback.print_exc()
            failures[name] = f"{type(error).__name__}: {error}"[:300]
    print(json.dumps(failures))


if __name__ == "__main__":
    main()
