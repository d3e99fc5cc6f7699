"""Times warm steps of a run, and estimates how much other programs slow them down."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil
import torch

from pipeline.core.processor import cores
from pipeline.train.evaluation import summarize
from pipeline.train.loop import train_step
from pipeline.train.state import TrainState

if TYPE_CHECKING:
    from pipeline.train.run import TrainingRun

_WARM_SECONDS = 1.0
"""No more warm steps are run after this total processor time."""
_FEWEST, _MOST = 3, 30
_SLOW = 10.0
"""If a step takes at least this many seconds, a single warm step is enough."""
_BUSY = 0.3
"""The machine counts as busy if other programs use at least this many cores."""
_SPEEDUP = 0.8
"""n threads are n^0.8 times as fast as one: 1.7 times for two, 3 for four (small models, this project's steps)."""


@dataclass(frozen=True)
class Seconds:
    """The measured duration of some work.

    Attributes:
        wall: Wall-clock seconds.
        processor: Processor seconds of all threads and child processes.
    """

    wall: float = 0.0
    processor: float = 0.0

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(max(0.0, self.wall - other.wall), max(0.0, self.processor - other.processor))


@dataclass(frozen=True)
class Speed:
    """The durations of the parts of a run, in seconds on an otherwise idle machine.

    Attributes:
        start: Imports and building the run.
        compile: The first step of a compiled run, minus a warm step.
        window: Computing the gradients of one window.
        update: The optimizer step.
        evaluation: Evaluating one window.
        others: The number of cores that other programs used during the measurement.
        slowdown: The factor by which these programs slow the run down.
    """

    start: float
    compile: float
    window: float
    update: float
    evaluation: float
    others: float = 0.0
    slowdown: float = 1.0

    @property
    def busy(self) -> bool:
        """Whether other programs slow the run down."""
        return self.others > 0


def others_at_work(run: TrainingRun, seconds: float = 0.5) -> float:
    """The number of cores used by other programs, of those this process may use; 0 if negligible, and on a GPU."""
    if run.device.type != "cpu":
        return 0.0
    before, began = _all_programs(), time.perf_counter()
    time.sleep(seconds)
    used = (_all_programs() - before) / (time.perf_counter() - began)
    return used if used > _BUSY else 0.0


def measure(run: TrainingRun, start: Seconds, size: int, others: float) -> Speed:
    """Runs and times steps and evaluations of `size` windows, until the times are those of warm steps.

    On a busy CPU, threads wait for each other, and even their processor time is distorted. There, a single thread
    is timed by its processor time.

    Args:
        run: The run; it is trained for some steps.
        start: The measured time to build it.
        size: The number of windows computed at once.
        others: The result of `others_at_work`.
    """
    params = {"micro_batch_size": size, "log_every": 0}
    phase = replace(run.phase, length=replace(run.length, batch_size=size))
    run = replace(run, phase=phase, params=run.params.model_copy(update=params))
    run.model.train()
    threads, busy = run.runtime_config.threads, others > 0
    torch.set_num_threads(1 if busy else threads)
    first = _timed(lambda: train_step(run, TrainState()))
    step = _warm(lambda: train_step(run, TrainState()))
    update = _warm(run.optimizer.step, 0.3)
    windows = run.data.eval_windows["val"][:size]
    with run.parallel.eager():
        evaluation = _warm(lambda: summarize(run, "val", windows), 0.3)
    slowdown = 1.0
    if busy:
        torch.set_num_threads(threads)
        slowdown = max(1.0, _warm(lambda: train_step(run, TrainState()), 0.0, 1).wall / _idle(step, threads))

    def alone(taken: Seconds) -> float:
        return _idle(taken, threads) if busy else taken.wall

    return Speed(
        start=start.processor if busy else start.wall,
        compile=alone(first - step) if run.runtime_config.compiled else 0.0,
        window=alone(step - update) / size,
        update=alone(update),
        evaluation=alone(evaluation) / len(windows),
        others=others,
        slowdown=slowdown,
    )


def since_start() -> Seconds:
    """The time of this process since its start."""
    return Seconds(time.time() - psutil.Process().create_time(), time.process_time())


def _idle(taken: Seconds, threads: int) -> float:
    """The seconds that this many threads take for work that takes one thread the given processor time."""
    return taken.processor / float(threads**_SPEEDUP)


def _warm(work: Callable[[], object], seconds: float = _WARM_SECONDS, fewest: int = _FEWEST) -> Seconds:
    """The median of repeated times without the first one."""
    _timed(work)
    warm: list[Seconds] = []
    while len(warm) < _MOST and (len(warm) < fewest or sum(each.processor for each in warm) < seconds):
        warm.append(_timed(work))
        if warm[-1].wall > _SLOW:
            break
    return Seconds(_median([each.wall for each in warm]), _median([each.processor for each in warm]))


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _timed(work: Callable[[], object]) -> Seconds:
    started = _now()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return _now() - started


def _now() -> Seconds:
    """The wall clock, and the processor time of this process and its child processes, such as compilers."""
    children = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            children += sum(child.cpu_times()[:2])
        except psutil.Error:
            continue
    return Seconds(time.perf_counter(), time.process_time() + sum(os.times()[2:4]) + children)


def _all_programs() -> float:
    """The seconds that the cores available to this process have been busy, for any program."""
    each = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(cores())
    resting = {"idle", "iowait", "guest", "guest_nice"}  # guest time is also counted as user time
    return sum(
        sum(seconds for name, seconds in each[core]._asdict().items() if name not in resting)
        for core in usable
        if core < len(each)
    )
