"""`python -m benchmarks`: measures, prints the table with verdicts, and writes the results and RESULTS.md."""

from __future__ import annotations

import os
import tempfile
import time
from importlib import import_module
from pathlib import Path

import click

from benchmarks import table
from benchmarks.context import Context
from benchmarks.goals import GOALS, verdict
from benchmarks.machine import machine, processor_kind
from benchmarks.measure import ROOT
from benchmarks.results import FOLDER, Results, read

ORDER = ("startup", "loading", "saving", "tokenizing", "generation", "training", "book", "learning")
"""The subjects, each a module of this package, the short ones first."""

_BUSY = 0.5
"""The load above which a note says that other processes may distort the results."""

_clone = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--quick",
    is_flag=True,
    help="Short version of about 3 minutes, other projects without compilation; writes to results/quick/.",
)
@click.option("--only", multiple=True, type=click.Choice(ORDER), help="Run only this subject. Repeatable.")
@click.option("--nanogpt", type=_clone, envvar="NANOGPT", help="A clone of nanoGPT to compare with.")
@click.option(
    "--litgpt", type=_clone, envvar="LITGPT", help="A clone of litgpt; its requirements must be installed."
)
@click.option("--book", type=_clone, envvar="BOOK", help="A clone of the book's code (LLMs-from-scratch).")
@click.option("--one-thread", is_flag=True, help="Measure training with one thread only, for a busy machine.")
@click.option("--whole-book", is_flag=True, help="Run all epochs of the book's training; the default is one.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds per side. Default: 5, with --quick 3.")
def main(
    quick: bool,
    only: tuple[str, ...],
    nanogpt: Path | None,
    litgpt: Path | None,
    book: Path | None,
    one_thread: bool,
    whole_book: bool,
    rounds: int | None,
) -> None:
    """Measure the speed of the project and of similar projects, and compare it with the goals.

    Some subjects need texts (tinyshakespeare.txt, the-verdict.txt, tiktoken's gpt2 vocabulary) in the folder
    PIPELINE_TEST_DATA. Subjects with missing texts are skipped with a note.
    """
    started = time.monotonic()
    # Commands in other folders must run the code of this checkout, not an installed version.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    clones = {name: path for name, path in (("nanogpt", nanogpt), ("litgpt", litgpt), ("book", book)) if path}
    target = FOLDER / ("quick" if quick else processor_kind(machine()))
    subjects = only or tuple(name for name in ORDER if not (quick and name == "book"))
    for subject in subjects:
        click.echo(f"── {subject}, after {time.monotonic() - started:,.0f} s")
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            context = Context(
                quick=quick,
                rounds=rounds or (3 if quick else 5),
                folder=Path(folder),
                code={name: path.resolve() for name, path in clones.items()},
                data=_data(),
                one_thread=one_thread,
                whole=whole_book,
                results=Results(subject),
            )
            if context.results.load > _BUSY and subject == subjects[0]:
                click.echo(
                    f"note: other processes are at work (load {context.results.load}): they disturb two threads "
                    "more than one, in processor time as well, since threads spin while they wait for each other"
                )
            begun = time.monotonic()
            import_module(f"benchmarks.{subject}").run(context)
            context.results.seconds = time.monotonic() - begun
            context.results.write(target)
    results = read(target, [name for name in table.SUBJECTS if name in subjects])
    click.echo(f"\n{table.plain(results)}\n")
    verdicts = [verdict(row) for each in results for row in each.rows if row.goal]
    click.echo(
        f"{verdicts.count('reached')} of {len(verdicts)} goals reached ({len(GOALS)} kinds of them), "
        f"in {time.monotonic() - started:,.0f} s"
    )
    if not quick:
        table.write()


def _data() -> Path | None:
    folder = os.environ.get("PIPELINE_TEST_DATA")
    return Path(folder).resolve() if folder else None


if __name__ == "__main__":
    main()
