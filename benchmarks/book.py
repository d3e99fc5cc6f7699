"""The training run of the book: ten epochs of GPT-2 small on a short story, with evaluations and samples."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.context import Context
from benchmarks.measure import Side, take_turns
from benchmarks.ours import WHOLE_RUNS, TemporaryProject
from benchmarks.results import Row

_EPOCHS = 10


def run(context: Context) -> None:
    """Ten epochs of each side. Of the book, whose epochs are all alike, one is run and counted ten times, or with
    `whole` all are; of ours all are, since what comes once (start-up, compiling, saving) is large beside an epoch.

    Ours is the preset `book`, its three stages as whole processes.
    """
    text = context.text("the-verdict.txt")
    code = context.peer("book", "the book's run")
    if text is None or code is None:
        return
    epochs = _EPOCHS if context.whole else 1
    ours = _ours(context, text)
    theirs = Side(
        "the book", "benchmarks.peers:book_run", {"text": str(text), "epochs": epochs, "threads": 1},
        code=(code[0] / "ch05" / "01_main-chapter-code",), environment=context.vocabulary,
    )  # fmt: skip
    done = take_turns([ours, theirs], 1)
    counted = _EPOCHS // epochs
    processor = done["ours"].processor, done["the book"].processor * counted
    wall = done["ours"].wall, done["the book"].wall * counted
    context.add(
        Row(
            "the book's run, 1 thread", "the book", processor[1] / processor[0], "times", "processor-seconds",
            *processor, wall[1] / wall[0], goal="the book's run",
            note="all ten epochs of both" if counted == 1 else "ours all ten epochs; the book's first ten times",
        )
    )  # fmt: skip


def _ours(context: Context, text: Path) -> Side:
    project = TemporaryProject(context.folder / "book")
    shutil.copy(text, project.raw)
    project.preset("book")
    settings = (f"train.budget.amount={_EPOCHS}", "runtime.threads=1", *WHOLE_RUNS)
    return project.side("ours", ["tokenize", "split", "train"], settings, _EPOCHS, 0, context.vocabulary)
