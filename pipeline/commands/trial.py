"""Trial steps of training in a child process: how much memory they need, and how long they take.

Beyond what was tried, memory is extrapolated linearly: each further window needs as much as the last ones did.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING

import torch

from pipeline.core.errors import PipelineError, describe_exception, out_of_memory
from pipeline.core.files import format_bytes
from pipeline.data.tokens import TokenFolder
from pipeline.model.device import peak_memory
from pipeline.plugin.registry import Registry
from pipeline.train.components import KINDS, Components
from pipeline.train.data import TrainingData
from pipeline.train.evaluation import summarize
from pipeline.train.loop import train_step
from pipeline.train.memory_check import memory_per_process, optimizer_state_bytes
from pipeline.train.phases import phases
from pipeline.train.ranks import Ranks
from pipeline.train.run import TrainingRun
from pipeline.train.runtime_config import process_count, resolve_runtime_config
from pipeline.train.state import TrainState
from pipeline.train.teacher import Teacher

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from pipeline.core.paths import Paths
    from pipeline.params.params import Params

_SECONDS_FOR_STEPS = 20.0


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs to train.

    Attributes:
        weights, gradients, optimizer: What stays from step to step, counted.
        activations: What a micro-batch adds at its peak, measured.
        saving: Copies of weights, best weights and optimizer, which a state is written from in the background.
        python: Python, torch and the data, measured; 0 on a GPU, whose memory holds none of them.
        shared: Whether the device's memory is the machine's own. A GPU's does not hold `saving`.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    saving: int
    python: int
    shared: bool

    @property
    def total(self) -> int:
        """Bytes on the device."""
        lasting = self.weights + self.gradients + self.optimizer
        return lasting + self.activations + self.python + (self.saving if self.shared else 0)

    def __str__(self) -> str:
        """The total and its parts."""
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}
        parts |= {"activations": self.activations, "saving": self.saving * self.shared, "Python": self.python}
        text = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        beside = "" if self.shared else f"; and {format_bytes(self.saving)} of the machine's memory for saving"
        return f"{format_bytes(self.total)} ({text}){beside}"


@dataclass(frozen=True)
class Trial:
    """What the steps needed.

    Attributes:
        memory: Of a process that computes `micro_batch_size` windows at once.
        micro_batch_size: Windows that each process of the run computes at once.
        tried: The largest micro-batch that was tried; `memory` is extrapolated where it is smaller.
        window: Seconds to compute the gradients of one window.
        update: Seconds that the optimizer takes for a step.
        evaluation: Seconds to evaluate one window.
    """

    memory: Memory
    micro_batch_size: int
    tried: int
    window: float
    update: float
    evaluation: float


def try_steps(params: Params, paths: Paths, splits: Path) -> Trial:
    """Computes a few steps of the run in a child process, not compiled, with the tokens in the folder `splits`.

    Raises:
        PipelineError: a step ran out of memory or failed otherwise, or the system killed the process.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_trial, args=(sender, params, paths, splits), daemon=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # in the child: Ctrl-C ends this process, which ends it
    child.start()
    signal.signal(signal.SIGINT, handler)
    sender.close()
    try:
        found: Trial | BaseException = receiver.recv()
    except EOFError:
        child.join()
        killed = child.exitcode == -signal.SIGKILL  # by the system, whose memory ran out
        found = MemoryError() if killed else PipelineError(f"the trial steps ended with code {child.exitcode}")
    finally:
        child.kill()
        child.join()
    if isinstance(found, Trial):
        return found
    if out_of_memory(found):
        raise PipelineError(
            "a trial step of training ran out of memory: lower train.micro_batch_size, model.context_length or "
            "model.emb_dim"
        )
    raise found


def _send_trial(sender: Connection, params: Params, paths: Paths, splits: Path) -> None:
    try:
        sender.send(_try_steps(params, paths, splits))
    except BaseException as error:
        told = isinstance(error, PipelineError | OSError) or out_of_memory(error)
        sender.send(
            error if told else PipelineError(f"a trial step of training raised {describe_exception(error)}")
        )


def _try_steps(params: Params, paths: Paths, folder: Path) -> Trial:
    splits = TokenFolder(folder, "")
    plan, count = _plan(params, paths, splits), process_count(params.runtime)
    size = min(params.train.micro_batch_size, -(-plan.length.batch_size // count))
    at_start = peak_memory(plan.device)
    peaks, window = _micro_batches(plan, size, accumulates=size * count < plan.length.batch_size)
    plan.optimizer.step()  # makes its state
    update = _seconds(plan.optimizer.step)
    weights, optimizer = sum(each.nbytes for each in plan.model.parameters()), optimizer_state_bytes(plan.optimizer)
    # Temporary tensors of the optimizer may need more than activations, which are free by then.
    temporary = peak_memory(plan.device) - optimizer
    memory = Memory(
        weights=weights,
        gradients=weights,
        optimizer=optimizer,
        activations=max(0, max(_extrapolated(peaks, size), temporary) - at_start - weights),
        saving=2 * weights + optimizer,
        python=at_start - weights,
        shared=plan.device.type != "cuda",
    )
    tried = max(peaks)
    windows = plan.data.eval_windows["val"][:tried]
    evaluation = _seconds(lambda: summarize(plan, "val", windows)) / len(windows)
    return Trial(memory, size, tried, window, update, evaluation)


def _plan(params: Params, paths: Paths, splits: TokenFolder) -> TrainingRun:
    registry = Registry.load(paths.plugins, KINDS, lambda note: None)
    components = Components.load(params, paths.plugins, registry)
    data = TrainingData.read(params, splits, components.batch_sampler)
    phase = phases(params.train, components.schedule, data.windows, {"params": {"train": {}}}, splits.folder)[-1]
    runtime_config = replace(
        resolve_runtime_config(params, Ranks(), {}, 0.0), compile=False
    )  # a few steps: not worth compiling
    teacher = Teacher.of(components.loss, paths.root)
    return TrainingRun.build(params, components, data, phase, runtime_config, teacher=teacher)


class _NoUpdates(torch.optim.SGD):
    """Keeps no state and needs no memory for a step, so that the peak grows by activations alone. Where a run
    accumulates gradients, they stay for the next step, as from one micro-batch to the next."""

    def __init__(self, plan: TrainingRun, accumulates: bool) -> None:
        super().__init__(plan.model.parameters())
        self.accumulates = accumulates

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not self.accumulates:
            super().zero_grad(set_to_none)

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Leaves the weights as they are."""


def _micro_batches(plan: TrainingRun, size: int, accumulates: bool) -> tuple[dict[int, int], float]:
    """Computes micro-batches of 1, 2, 4, … windows, at least of 1 and 2, and up to `size` as far as time and memory
    reach. Returns the peak memory in bytes by their size, and the last one's seconds for each window."""
    plan, started = replace(plan, optimizer=_NoUpdates(plan, accumulates)), time.perf_counter()
    peaks: dict[int, int] = {}
    tried = 1
    while True:
        # The second step is quicker, and may need more: the first left free memory in parts of other sizes.
        seconds = min(_compute(plan, tried) for _ in range(2))
        peaks[tried] = peak_memory(plan.device)
        following = min(2 * tried, size)
        late = time.perf_counter() - started + 2 * seconds * following / tried > _SECONDS_FOR_STEPS
        too_large = _extrapolated(peaks, following) > memory_per_process(plan.device)
        if tried == size or (tried > 1 and (late or too_large)):
            return peaks, seconds / tried
        tried = following


def _compute(plan: TrainingRun, size: int) -> float:
    """Takes a step of one micro-batch; returns its seconds."""
    length, params = replace(plan.length, batch_size=size), {"micro_batch_size": size, "log_every": 0}
    one = replace(plan, phase=replace(plan.phase, length=length), params=plan.params.model_copy(update=params))
    return _seconds(lambda: train_step(one, TrainState()))


def _extrapolated(peaks: dict[int, int], size: int) -> int:
    """The peak with `size` windows, on the line through the two largest sizes that were tried."""
    sizes = sorted(peaks)[-2:]
    fewer, tried = sizes[0], sizes[-1]
    slope = (peaks[tried] - peaks[fewer]) / max(1, tried - fewer)
    return round(peaks[tried] + slope * (size - tried))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started
