"""How long the parts of a run take: timed warm steps of it, and how far other programs slow them down."""

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

_WARM_SECONDS = 3.0
"""Processor time of the warm steps together, from which on no further one is taken."""
_FEWEST, _MOST = 3, 30
_SLOW = 10.0
"""Seconds of a step from which on a single warm one is enough."""
_BUSY = 0.3
"""Cores that other programs use, from which on the machine counts as busy."""
_SPEEDUP = 0.8
"""n threads are n^0.8 times as fast as one: 1.7 times for two, 3 for four (small models, this project's steps)."""


@dataclass(frozen=True)
class Seconds:
    """What some work took.

    Attributes:
        wall: Seconds on the clock.
        processor: Seconds of processor time, those of all threads and of started processes together.
    """

    wall: float = 0.0
    processor: float = 0.0

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(max(0.0, self.wall - other.wall), max(0.0, self.processor - other.processor))


@dataclass(frozen=True)
class Speed:
    """What the parts of a run take in seconds where no other program runs.

    Attributes:
        start: Imports, and building the run.
        compile: The first step of a compiled run, beyond what a warm one takes.
        window: The gradients of one window.
        update: The optimizer's part of a step.
        evaluation: The evaluation of one window.
        others: Cores that other programs used meanwhile.
        slowdown: How many times as long everything takes with those programs beside it.
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
    """Cores that other programs use, of those this process may use; 0 for hardly any, and for a run on a GPU."""
    if run.device.type != "cpu":
        return 0.0
    before, began = _all_programs(), time.perf_counter()
    time.sleep(seconds)
    used = (_all_programs() - before) / (time.perf_counter() - began)
    return used if used > _BUSY else 0.0


def measure(run: TrainingRun, start: Seconds, size: int, others: float) -> Speed:
    """Takes steps of `size` windows, and evaluates as many, until the times are those of a run that is under way.

    On a CPU that others use, threads wait for each other, and even their processor time says little: there, one
    thread is timed by its processor time.

    Args:
        run: It is trained by some steps.
        start: What it took to build it.
        size: Windows that are computed at once.
        others: As `others_at_work` says.
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
        evaluation = _warm(lambda: summarize(run, "val", windows), 1.0)
    slowdown = 1.0
    if busy:
        torch.set_num_threads(threads)
        slowdown = max(1.0, _warm(lambda: train_step(run, TrainState()), 0.0, 1).wall / _idle(step, threads))

    def alone(taken: Seconds) -> float:
        return _idle(taken, threads) if busy else taken.wall

    return Speed(
        start=start.processor if busy else start.wall,
        compile=alone(first - step) if run.runtime_config.compile else 0.0,
        window=alone(step - update) / size,
        update=alone(update),
        evaluation=alone(evaluation) / len(windows),
        others=others,
        slowdown=slowdown,
    )


def since_start() -> Seconds:
    """What this process has taken since it was started."""
    return Seconds(time.time() - psutil.Process().create_time(), time.process_time())


def _idle(taken: Seconds, threads: int) -> float:
    """Seconds that so many threads take for what took one of them this processor time."""
    return taken.processor / float(threads**_SPEEDUP)


def _warm(work: Callable[[], object], seconds: float = _WARM_SECONDS, fewest: int = _FEWEST) -> Seconds:
    """The median of several times of the same work, the first time left out."""
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
    """The clock, and the processor time of this process and of those that it started, such as compilers."""
    children = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            children += sum(child.cpu_times()[:2])
        except psutil.Error:
            continue
    return Seconds(time.perf_counter(), time.process_time() + sum(os.times()[2:4]) + children)


def _all_programs() -> float:
    """Seconds that the cores which this process may use have worked for anyone so far."""
    each = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(cores())
    resting = {"idle", "iowait", "guest", "guest_nice"}  # guests are counted as user, too
    return sum(
        sum(seconds for name, seconds in each[core]._asdict().items() if name not in resting)
        for core in usable
        if core < len(each)
    )
