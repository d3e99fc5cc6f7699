"""`python -m benchmarks.revisions REVISION`: compares the speed of training steps with an earlier one."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

import click

from benchmarks.machine import machine
from benchmarks.measure import ROOT, ratios, take_turns
from benchmarks.ours import SHAPES, training_side


def extract(revision: str, folder: Path) -> None:
    """Writes the files of a git revision of this project into a folder."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "--extract", "--directory", folder], input=archive, check=True)


def summary(values: list[float]) -> str:
    """The median of ratios, and their quartiles."""
    low, middle, high = quantiles(values, n=4)
    return f"{middle:.3f} (quartiles {low:.3f} to {high:.3f})"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("revision")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="tiny", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Steps per round.")
@click.option("--rounds", type=click.IntRange(min=2), default=9, show_default=True)
def main(revision: str, shape: str, steps: int, rounds: int) -> None:
    """Compare the training steps of this working tree with those of REVISION.

    Three processes with one thread take turns: this tree, REVISION, and this tree again, which shows the noise.
    Printed are the medians of the ratios of tokens per processor-second in each round. The shape `tiny` shows the
    time of Python, the others that of the kernels.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        extract(revision, Path(folder))
        now = training_side(SHAPES[shape], 1, steps)
        sides = [
            replace(now, name="now"),
            replace(now, name=revision, project=Path(folder)),
            replace(now, name="now again"),
        ]
        found = {name: measured.rounds for name, measured in take_turns(sides, rounds).items()}
    click.echo(
        f"{shape}: {rounds} rounds of {steps} steps; load {os.getloadavg()[0]:.1f}; {machine()['processor']}"
    )
    click.echo(f"now / {revision}: {summary(ratios(found['now'], found[revision]))}")
    click.echo(f"now / now again: {summary(ratios(found['now'], found['now again']))}")


if __name__ == "__main__":
    main()
