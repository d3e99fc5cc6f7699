"""Sides that take turns: each in a process of its own, round by round, in processor time and in wall time."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from pipeline.core import processor

ROOT = Path(__file__).resolve().parents[1]
"""The project's folder."""

Work = Callable[[], float]
"""A round: does some work, and returns how much it was."""

_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Side:
    """One of those that are compared.

    Attributes:
        name: What tables call it.
        target: `module:function`, which prepares the side in its process, warm-up and compiling included, and
            returns a round and what there is to tell of it (plain values).
        settings: The function's keyword arguments, plain values.
        threads: Processor threads that it may use.
        code: Folders of another project's code, which its process imports from.
        environment: Further variables of its process.
    """

    name: str
    target: str
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    code: tuple[Path, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """What a round did: its work in the side's own unit, and the seconds that it took.

    Attributes:
        work: Such as tokens.
        processor: Processor seconds of all threads and of child processes that have ended.
        wall: Seconds on the clock.
    """

    work: float
    processor: float
    wall: float

    @property
    def rate(self) -> float:
        """Work per processor-second."""
        return self.work / max(self.processor, 1e-9)

    @property
    def wall_rate(self) -> float:
        """Work per second on the clock."""
        return self.work / max(self.wall, 1e-9)


@dataclass(frozen=True)
class Measured:
    """A side's rounds, what it told of itself, and its peak memory in bytes."""

    rounds: list[Round]
    facts: dict[str, Any]
    peak_memory: int

    @property
    def rate(self) -> float:
        """The median work per processor-second."""
        return median(each.rate for each in self.rounds)

    @property
    def processor(self) -> float:
        """The median processor seconds of a round."""
        return median(each.processor for each in self.rounds)

    @property
    def wall(self) -> float:
        """The median seconds of a round on the clock."""
        return median(each.wall for each in self.rounds)


class SideFailedError(Exception):
    """A side's process ended with an error; the message holds the end of what it wrote."""


def measured(work: Work) -> Round:
    """Does a round and times it."""
    wall, processor = time.perf_counter(), _processor_seconds()
    amount = work()
    return Round(amount, _processor_seconds() - processor, time.perf_counter() - wall)


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_memory() -> int:
    """Bytes that this process, or the largest child that it waited for, had at the most."""
    return max(processor.peak_memory(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _UNIT)


def take_turns(sides: Sequence[Side], rounds: int) -> dict[str, Measured]:
    """Prepares every side, all at once, then lets each do a round in turn, `rounds` times; by name.

    Turns, so that what else the machine does at a time strikes all sides alike.

    Raises:
        SideFailedError: one of them could not be prepared, or failed in a round.
    """
    with ExitStack() as processes:
        workers = {side.name: processes.enter_context(Worker(side)) for side in sides}
        facts = {name: worker.prepared() for name, worker in workers.items()}
        done: dict[str, list[Round]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                done[name].append(worker.round())
        return {name: Measured(done[name], facts[name], worker.peak_memory()) for name, worker in workers.items()}


def facts_of(side: Side) -> dict[str, Any]:
    """What a side tells of itself when it is prepared, without any round."""
    with Worker(side) as worker:
        return worker.prepared()


def ratios(one: Iterable[Round], other: Iterable[Round], wall: bool = False) -> list[float]:
    """How many times the other's rate the one's was, in each round."""
    pairs = zip(one, other, strict=True)
    return [a.wall_rate / b.wall_rate if wall else a.rate / b.rate for a, b in pairs]


class Worker:
    """A side's process (`benchmarks.worker`), which prepares the side, and does a round whenever it is asked."""

    def __init__(self, side: Side) -> None:
        self.side = side
        threads = str(side.threads)
        paths = [str(ROOT), *map(str, side.code), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": os.pathsep.join(paths),
                **side.environment,
            },
        )

    def __enter__(self) -> Worker:
        self._send({"target": self.side.target, "settings": self.side.settings})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def prepared(self) -> dict[str, Any]:
        """Waits until the side is prepared; returns what it tells of itself."""
        facts: dict[str, Any] = self._answer()["facts"]
        return facts

    def round(self) -> Round:
        """Lets the side do one round."""
        return Round(**self._ask({"do": "round"}))

    def peak_memory(self) -> int:
        """Bytes that the side had at the most."""
        return int(self._ask({"do": "peak_memory"})["bytes"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._send(request)
        return self._answer()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it wrote before it ended is read below
            print(json.dumps(request), file=self._process.stdin, flush=True)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        written: list[str] = []
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return answer
            written.append(line)
        raise SideFailedError(f"{self.side.name}: {''.join(written[-30:]).strip()}")


ANSWER = "\x1eanswer "
"""What the lines of a worker begin with that are answers, and not what the side itself prints."""


def command(
    commands: list[list[str]], folder: str, work: float, cpus: int = 0, environment: dict[str, str] | None = None
) -> tuple[Work, dict[str, Any]]:
    """A side that is one command line or several, in `folder`: their whole processes are measured.

    Args:
        commands: Each a list of arguments; "python" stands for this Python.
        folder: Where they run.
        work: What they do together, in the side's unit.
        cpus: How many processors they may use; 0 for all.
        environment: Further variables.
    """

    def limit() -> None:
        if cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])

    def run() -> float:
        for each in commands:
            line = [sys.executable if part == "python" else part for part in each]
            done = subprocess.run(
                line, cwd=folder, capture_output=True, text=True, preexec_fn=limit,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{' '.join(each)}: {(done.stdout + done.stderr)[-2000:]}")
        return work

    return run, {}
