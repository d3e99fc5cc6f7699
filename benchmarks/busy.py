"""Two threads on an idle machine and beside another program, against one thread: wall-clock time of steps.

Sides take turns, each in a process of its own, with training steps of the default model. For the busy state, one
process keeps a core busy. Run `python -m benchmarks.busy` on a machine with two cores and nothing else to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.measure import ROOT, Measured, Side, Work, take_turns

_SPIN = "while True: pass"


def steps(count: int, watched: bool, threads: int) -> tuple[Work, dict[str, Any]]:
    """A side that takes training steps of the default model on random text."""
    import numpy as np

    from benchmarks.ours import tokenizer
    from pipeline.data.masked import MaskedIds
    from pipeline.distributed.ranks import Ranks
    from pipeline.model import waiting
    from pipeline.params.reader import load_params
    from pipeline.train.checkpoint_store import CheckpointStore
    from pipeline.train.components import Components
    from pipeline.train.data import TrainingData
    from pipeline.train.length import Length
    from pipeline.train.loop import train_step
    from pipeline.train.phases import Phase
    from pipeline.train.run import TrainingRun
    from pipeline.train.runtime_config import resolve_runtime_config
    from pipeline.train.state import TrainState

    if not watched:
        waiting.watch = lambda: None
    settings = ("runtime.device=cpu", "runtime.compile=false", f"runtime.threads={threads}", "train.log_every=0")
    params = load_params(ROOT / "params.yaml", settings)
    components = Components.load(params, ROOT / "plugins")
    text = MaskedIds(np.random.default_rng(1).integers(0, 4095, 1_000_000).astype("<u2"))
    data = TrainingData.build(params, tokenizer(4096), {"train": text, "val": text}, components.batch_sampler)
    store = CheckpointStore(Path("unused"), "unused")
    phase = Phase(Length(params.train.batch_size, (1 << 40,)), lambda step: 1.0, {}, store)
    config = resolve_runtime_config(params, Ranks(), {}, float("inf"))
    run, state = TrainingRun.build(params, components, data, phase, config), TrainState()
    run.model.train()

    def work() -> float:
        return float(sum(train_step(run, state)[1] for _ in range(count)))

    work()
    return work, {}


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", _SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def sides(count: int) -> list[Side]:
    """The compared ways to wait."""

    def side(name: str, threads: int, watched: bool, **environment: str) -> Side:
        settings = {"count": count, "watched": watched, "threads": threads}
        return Side(name, "benchmarks.busy:steps", settings, threads, environment=environment)

    return [
        side("one thread", 1, False),
        side("two threads, as they are", 2, True),
        side("two threads that spin", 2, False),
        side("two threads that sleep", 2, False, OMP_WAIT_POLICY="passive"),
    ]


def _row(state: str, found: dict[str, Measured]) -> str:
    first = next(iter(found))
    cells = []
    for measured in found.values():
        ratios = [mine.wall / one.wall for mine, one in zip(measured.rounds, found[first].rounds, strict=True)]
        cells.append(f"{measured.wall:.1f} s ({median(ratios):.2f})")
    return f"| {state} | {' | '.join(cells)} |"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--steps", "count", default=20, show_default=True, help="Steps in a round.")
@click.option("--rounds", default=5, show_default=True)
def main(count: int, rounds: int) -> None:
    """Measure both states; print a Markdown table of a round's median seconds, also as a share of one thread's."""
    if len(os.sched_getaffinity(0)) != 2:
        click.echo("note: this machine does not have two cores: the busy state keeps one core busy", err=True)
    names = [side.name for side in sides(count)]
    click.echo(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    click.echo(_row("idle", take_turns(sides(count), rounds)))
    with busy_core():
        click.echo(_row("one core busy", take_turns(sides(count), rounds)))


if __name__ == "__main__":
    main()
