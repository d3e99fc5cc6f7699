"""The command line of the GPU benchmark."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from benchmarks.gpu import report
from benchmarks.gpu.part import FAILED, LEFT_OUT, Found, Part
from benchmarks.gpu.plan import checks, measurements
from benchmarks.gpu.report import Report
from benchmarks.results import FOLDER, shown_command

_SHARE_OF_CHECKS = 0.3
"""The share of the time after which the measurements begin."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", default="cuda", show_default=True, help="cuda, or cpu to try the code.")
@click.option("--quick", is_flag=True, help="Tries every part with tiny sizes; the rates mean nothing.")
@click.option("--only", multiple=True, metavar="TEXT", help="Only the parts with TEXT in their name. Repeatable.")
@click.option(
    "--seconds", default=520.0, show_default=True, help="When to stop; what is left is named in the table."
)
@click.option("--at-once", default=4, show_default=True, help="How many checks run at the same time.")
@click.option(
    "--nanogpt", type=click.Path(exists=True, file_okay=False, path_type=Path), envvar="NANOGPT",
    help="A clone of nanoGPT, to measure it, too.",
)  # fmt: skip
@click.option(
    "--results", type=click.Path(path_type=Path),
    help="The folder for gpu-NAME.json.  [default: benchmarks/results; with --quick none]",
)  # fmt: skip
def main(
    device: str, quick: bool, only: tuple[str, ...], seconds: float, at_once: int, nanogpt: Path | None,
    results: Path | None,
) -> None:  # fmt: skip
    """Check and measure on a GPU, within a time limit, and print one table.

    Each part is a process of its own: one that fails, or that needs too much memory or time, leaves the others.
    """
    started = time.monotonic()
    folder = results or (None if quick else FOLDER)
    name = _name(device)
    found = Report(name, shown_command(sys.argv[1:], "benchmarks.gpu"))

    def add(part: Part, outcome: Found) -> None:
        found.found[part.name] = outcome
        found.seconds = time.monotonic() - started
        click.echo(f"{found.seconds:4.0f} s  {part.name}: {outcome.result}  {outcome.note}")
        if folder:  # after each part, so that an interruption loses nothing
            found.write(folder)

    def chosen(parts: list[Part]) -> list[Part]:
        return [part for part in parts if not only or any(text in part.name for text in only)]

    until = started + seconds
    checked = until if quick else started + _SHARE_OF_CHECKS * seconds
    with ThreadPoolExecutor(at_once) as pool:
        first = chosen(checks(device, quick))
        for part, outcome in zip(first, pool.map(lambda part: part.run(checked), first), strict=True):
            add(part, outcome)
    for part in chosen(measurements(device, quick, nanogpt.resolve() if nanogpt else None)):
        add(part, part.run(until))
    if nanogpt is None:
        add(Part("nanoGPT", ""), Found(LEFT_OUT, "no clone was given: NANOGPT=/path/to/a/clone"))
    click.echo(f"\n{name}\n{found.plain()}")
    if folder == FOLDER:
        report.write()
    if any(each.result == FAILED for each in found.found.values()):
        sys.exit(1)


def _name(device: str) -> str:
    """The device's name, read in a process of its own: this one must not take memory of the GPU."""
    if device == "cpu":
        return "cpu"
    code = "import sys, torch; print(torch.cuda.get_device_name(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, device], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise click.ClickException(f"--device {device}: {reason}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
