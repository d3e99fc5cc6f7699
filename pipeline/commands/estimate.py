"""Estimates the duration of a run and its parts; on a busy machine as a range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.commands.timing import Speed
from pipeline.core.console import fact, say
from pipeline.core.processor import cores
from pipeline.distributed.placement import process_count
from pipeline.model.device import choose_device

if TYPE_CHECKING:
    from pipeline.params.params import Params
    from pipeline.train.data import TrainingData
    from pipeline.train.length import Length


@dataclass(frozen=True)
class Span:
    """An estimated duration.

    Attributes:
        idle: Seconds on an otherwise idle machine.
        now: Seconds at the current load.
    """

    idle: float
    now: float

    def __str__(self) -> str:
        """The range, or a single value if both ends are formatted alike."""
        ends = duration(self.idle), duration(max(self.idle, self.now))
        if ends[0] == ends[1]:
            return ends[0]
        (low, unit), (high, other) = (each.split(" ") for each in ends)
        return f"{low} to {high} {unit}" if unit == other else f"{ends[0]} to {ends[1]}"


@dataclass(frozen=True)
class Estimate:
    """The estimated durations of the parts of a run.

    Attributes:
        training: All training steps.
        compile: Compilation, at most: torch caches compiled code.
        rest: Start-up and evaluations.
    """

    training: Span
    compile: Span
    rest: Span

    @classmethod
    def of(cls, params: Params, length: Length, data: TrainingData, speed: Speed) -> Estimate:
        """The estimate for a run, from the speed measured on this machine."""

        def span(seconds: float) -> Span:
            return Span(seconds, seconds * speed.slowdown)

        on_gpus = choose_device(params.runtime.device).type == "cuda"
        at_once = process_count(params.runtime) if on_gpus else 1  # processes on CPUs share the cores
        steps = length.total_steps
        read = sum(len(windows) for windows in data.eval_windows.values())
        evaluated = (steps // params.train.evaluation.every + 1) * read + 2 * len(data.val_windows)
        return cls(
            training=span(length.total_windows * speed.window / at_once + steps * speed.update),
            compile=span(speed.compile),
            rest=span(speed.start + speed.evaluation * evaluated / at_once),
        )

    @property
    def total(self) -> Span:
        """The total duration of the train stage."""
        parts = (self.training, self.compile, self.rest)
        return Span(sum(part.idle for part in parts), sum(part.now for part in parts))


def say_time(params: Params, length: Length, data: TrainingData, speed: Speed) -> None:
    """Prints the estimate."""
    found = Estimate.of(params, length, data, speed)
    tokens = length.total_windows * params.model.context_length
    fact("time", f"about {found.total} to train: {found.training} for {length.total_steps:,} steps")
    rates = [f"{tokens / max(seconds, 1e-9):,.0f}" for seconds in (found.training.now, found.training.idle)]
    compiling = f", compiling at most {found.compile}" if found.compile.now else ""
    fact("", f"({' to '.join(dict.fromkeys(rates))} tokens/s){compiling}, {found.rest} for start and evaluations")
    if speed.busy:
        busy = f"other programs use {speed.others:.1f} of {cores()} cores"
        say(f"note: {busy}: the shorter times are without them")


def duration(seconds: float) -> str:
    """Formats seconds for people: 40 s, 5 min, 2.5 h, 3 days."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"
