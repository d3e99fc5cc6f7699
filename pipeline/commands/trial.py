"""Trial steps of training in a child process, to measure their memory and time.

For larger micro-batches than were tried, memory is extrapolated linearly in the number of windows.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.commands.timing import Seconds, Speed, measure, others_at_work, since_start
from pipeline.core.errors import PipelineError, describe_exception, out_of_memory
from pipeline.core.files import format_bytes
from pipeline.data.tokens import TokenFolder
from pipeline.distributed.placement import process_count
from pipeline.distributed.ranks import Ranks
from pipeline.model.device import peak_memory
from pipeline.plugin.registry import Registry
from pipeline.train.components import KINDS, Components
from pipeline.train.data import TrainingData
from pipeline.train.length import rank_micro_batch_size
from pipeline.train.loop import train_step
from pipeline.train.memory_check import memory_per_process, optimizer_state_bytes
from pipeline.train.phases import Phase, phases
from pipeline.train.run import TrainingRun
from pipeline.train.runtime_config import resolve_runtime_config
from pipeline.train.state import TrainState
from pipeline.train.teacher import Teacher

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from pipeline.core.paths import Paths
    from pipeline.model.architecture import Architecture
    from pipeline.params.params import Params

_SECONDS_FOR_STEPS = 20.0


@dataclass(frozen=True)
class Memory:
    """The bytes that one process needs for training.

    Attributes:
        weights, gradients, optimizer: The tensors that stay from step to step, counted.
        activations: The peak memory that a micro-batch adds, measured.
        saving: Copies of weights, best weights and optimizer state, from which checkpoints are saved in the
            background.
        python: Python, torch and the data, measured; 0 on a GPU.
        shared: Whether the device uses the main memory. If not (a GPU), `saving` is not in its memory.
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
        """The total bytes on the device."""
        lasting = self.weights + self.gradients + self.optimizer
        return lasting + self.activations + self.python + (self.saving if self.shared else 0)

    def __str__(self) -> str:
        """The total and its parts, for people."""
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}
        parts |= {"activations": self.activations, "saving": self.saving * self.shared, "Python": self.python}
        text = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        beside = "" if self.shared else f"; and {format_bytes(self.saving)} of the machine's memory for saving"
        return f"{format_bytes(self.total)} ({text}){beside}"


@dataclass(frozen=True)
class Trial:
    """The measurements of the trial steps.

    Attributes:
        memory: The memory of a process that computes `micro_batch_size` windows at once.
        micro_batch_size: The number of windows that each process of the run computes at once.
        tried: The largest micro-batch that was tried; if it is smaller, `memory` is extrapolated.
        speed: The times of the run's parts.
    """

    memory: Memory
    micro_batch_size: int
    tried: int
    speed: Speed


TrySteps = Callable[["Params", "Paths", Path], Trial]


@contextmanager
def trial_process() -> Iterator[TrySteps]:
    """Starts a child process, which imports torch; yields a function that runs a few training steps in it, once.

    The function takes the tokens from a folder of splits. Memory is measured without compilation, time as the run
    will be computed. It raises PipelineError if a step ran out of memory or failed, or the system killed the child.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_serve, args=(there,), daemon=True)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child ignores Ctrl-C: this process ends it
    child.start()
    signal.signal(signal.SIGINT, handler)
    there.close()

    def try_steps(params: Params, paths: Paths, splits: Path) -> Trial:
        try:
            here.send((params, paths, splits))
            found: Trial | BaseException = here.recv()
        except (EOFError, ConnectionError):
            child.join()
            killed = child.exitcode == -signal.SIGKILL  # by the system, because it ran out of memory
            found = MemoryError() if killed else PipelineError(f"the trial steps ended with code {child.exitcode}")
        if isinstance(found, Trial):
            return found
        if out_of_memory(found):
            raise PipelineError(
                "a trial step of training ran out of memory: lower train.micro_batch_size, model.context_length or "
                "model.emb_dim"
            )
        raise found

    try:
        yield try_steps
    finally:
        child.kill()
        child.join()


def try_steps(params: Params, paths: Paths, splits: Path) -> Trial:
    """The function that `trial_process` yields, in a process that is started now."""
    with trial_process() as steps:
        return steps(params, paths, splits)


def _serve(connection: Connection) -> None:
    imported = since_start()
    try:
        params, paths, splits = connection.recv()
    except EOFError:  # the parent process is gone
        return
    waited = since_start() - imported
    try:
        connection.send(_try_steps(params, paths, splits, waited))
    except BaseException as error:
        has_message = isinstance(error, PipelineError | OSError) or out_of_memory(error)
        connection.send(
            error if has_message else PipelineError(f"a trial step of training raised {describe_exception(error)}")
        )


def _try_steps(params: Params, paths: Paths, folder: Path, waited: Seconds) -> Trial:
    """`waited` is the time of this process that is not part of a run's start."""
    splits = TokenFolder(folder, "")
    plan, compiled = _plan(params, paths, splits)
    start, others = since_start() - waited, others_at_work(plan)
    if others:  # threads that wait for each other would make the trial long
        torch.set_num_threads(1)
    count = process_count(params.runtime)
    size = rank_micro_batch_size(params.train, count)
    at_start = peak_memory(plan.device)
    peaks = _micro_batches(plan, size, accumulates=size * count < plan.length.batch_size)
    plan.optimizer.step()  # creates its state
    weights, optimizer = sum(each.nbytes for each in plan.model.parameters()), optimizer_state_bytes(plan.optimizer)
    # Temporary tensors of the optimizer step may need more memory than activations, which are freed by then.
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
    if compiled:
        plan, _ = _plan(params, paths, splits, compiled)
    return Trial(memory, size, max(peaks), measure(plan, start, max(peaks), others))


def _plan(params: Params, paths: Paths, splits: TokenFolder, compiled: bool = False) -> tuple[TrainingRun, bool]:
    """The run, compiled or not, and whether training will compile it."""
    registry = Registry.load(paths.plugins, KINDS, lambda note: None)
    components = Components.load(params, paths.plugins, registry)
    data = TrainingData.read(params, splits, components.batch_sampler)
    architecture = components.architecture(params.model, data.tokenizer)
    phase = last_phase(params, components, data, architecture)
    flops = phase.length.total_windows * params.model.context_length * architecture.flops_per_token
    if not phase.length.total_windows:  # train.budget.amount: 0 takes no step
        length = replace(phase.length, phase_windows=(phase.length.batch_size,))
        phase = replace(phase, length=length)
    config = resolve_runtime_config(params, Ranks(), {}, flops, architecture)
    now = config if compiled else replace(config, compile="no")
    teacher = Teacher.of(components.loss, paths.root)
    return TrainingRun.build(params, components, data, phase, now, teacher=teacher), config.compiled


def last_phase(params: Params, components: Components, data: TrainingData, architecture: Architecture) -> Phase:
    """The phase that trains to the end of the run. Nothing is saved, so it has no identity and no checkpoints."""
    nothing: dict[str, Any] = {"params": {"train": {}}}
    return phases(
        params.train, components.schedule, data.windows, architecture.flops_per_token, nothing, Path(os.devnull)
    )[-1]


class _NoUpdates(torch.optim.SGD):
    """An optimizer without state and updates, so that only activations increase the peak memory.

    If the run accumulates gradients, they are kept for the next step, as between micro-batches.
    """

    def __init__(self, plan: TrainingRun, accumulates: bool) -> None:
        super().__init__(plan.model.parameters())
        self.accumulates = accumulates

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not self.accumulates:
            super().zero_grad(set_to_none)

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Does nothing."""


def _micro_batches(plan: TrainingRun, size: int, accumulates: bool) -> dict[int, int]:
    """Runs micro-batches of 1, 2, 4, … windows up to `size`, at least 1 and 2, as far as time and memory allow.

    Returns:
        The peak memory in bytes by micro-batch size.
    """
    plan, started = replace(plan, optimizer=_NoUpdates(plan, accumulates)), time.perf_counter()
    peaks: dict[int, int] = {}
    tried = 1
    while True:
        # The second step is faster, and may need more memory because of fragmentation after the first.
        seconds = min(_compute(plan, tried) for _ in range(2))
        peaks[tried] = peak_memory(plan.device)
        following = min(2 * tried, size)
        late = time.perf_counter() - started + 2 * seconds * following / tried > _SECONDS_FOR_STEPS
        too_large = _extrapolated(peaks, following) > memory_per_process(plan.device)
        if tried == size or (tried > 1 and (late or too_large)):
            return peaks
        tried = following


def _compute(plan: TrainingRun, size: int) -> float:
    """Runs a step of one micro-batch; returns its seconds."""
    length, params = replace(plan.length, batch_size=size), {"micro_batch_size": size, "log_every": 0}
    one = replace(plan, phase=replace(plan.phase, length=length), params=plan.params.model_copy(update=params))
    return _seconds(lambda: train_step(one, TrainState()))


def _extrapolated(peaks: dict[int, int], size: int) -> int:
    """The peak memory with `size` windows, extrapolated from the two largest sizes that were tried."""
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
