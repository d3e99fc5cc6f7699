"""Measures sides in alternating rounds, each side in a separate process, in processor time and wall time."""

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
"""A function that does the work of a round and returns its amount."""

_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Side:
    """One of the compared programs.

    Attributes:
        name: The name in tables.
        target: `module:function`, which prepares the side in its process, with warm-up and compilation, and returns
            the function for a round and facts about the side (plain values).
        settings: The keyword arguments of the function, plain values.
        threads: The number of processor threads that it may use.
        code: Folders of another project's code to import from.
        environment: More environment variables of its process.
        project: The folder of this project, or of another revision of it, whose worker runs.
    """

    name: str
    target: str
    settings: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    code: tuple[Path, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    project: Path = ROOT


@dataclass(frozen=True)
class Round:
    """The work of a round, in the unit of the side, and its duration.

    Attributes:
        work: The amount of work, such as a number of tokens.
        processor: Processor seconds of all threads and finished child processes.
        wall: Wall-clock seconds.
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
        """Work per wall-clock second."""
        return self.work / max(self.wall, 1e-9)


@dataclass(frozen=True)
class Measured:
    """The rounds of a side, facts about it, and its peak memory in bytes."""

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
        """The median wall-clock seconds of a round."""
        return median(each.wall for each in self.rounds)


class SideFailedError(Exception):
    """The process of a side failed; the message has the end of its output."""


def measured(work: Work) -> Round:
    """Runs a round and measures it."""
    wall, processor = time.perf_counter(), _processor_seconds()
    amount = work()
    return Round(amount, _processor_seconds() - processor, time.perf_counter() - wall)


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_memory() -> int:
    """The peak memory in bytes of this process or its largest finished child process."""
    return max(processor.peak_memory(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _UNIT)


def take_turns(sides: Sequence[Side], rounds: int) -> dict[str, Measured]:
    """Prepares all sides at once, then runs `rounds` rounds of each, in alternation; returns the results by name.

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
    """Prepares a side and returns its facts, without a round."""
    with Worker(side) as worker:
        return worker.prepared()


def ratios(one: Iterable[Round], other: Iterable[Round], wall: bool = False) -> list[float]:
    """The ratio of the rates of two sides in each round."""
    pairs = zip(one, other, strict=True)
    return [a.wall_rate / b.wall_rate if wall else a.rate / b.rate for a, b in pairs]


class Worker:
    """The process of a side (`benchmarks.worker`), which prepares the side and runs a round on request."""

    def __init__(self, side: Side) -> None:
        self.side = side
        threads = str(side.threads)
        paths = [str(side.project), *map(str, side.code), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=side.project,
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
        """Waits until the side is prepared; returns its facts."""
        facts: dict[str, Any] = self._answer()["facts"]
        return facts

    def round(self) -> Round:
        """Runs one round of the side."""
        return Round(**self._ask({"do": "round"}))

    def peak_memory(self) -> int:
        """The peak memory of the side in bytes."""
        return int(self._ask({"do": "peak_memory"})["bytes"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._send(request)
        return self._answer()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its output is read below
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
"""The prefix of a worker's answers, which distinguishes them from output of the side."""


def command(
    commands: list[list[str]], folder: str, work: float, cpus: int = 0, environment: dict[str, str] | None = None
) -> tuple[Work, dict[str, Any]]:
    """A side that runs one or more command lines in `folder`; their whole processes are measured.

    Args:
        commands: Lists of arguments; "python" stands for the current Python.
        folder: The working folder.
        work: The total work, in the unit of the side.
        cpus: The number of processors that they may use; 0 for all.
        environment: More environment variables.
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
