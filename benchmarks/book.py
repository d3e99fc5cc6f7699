"""The book's own run: ten epochs of GPT-2 small over a short story, with its evaluations and samples."""

from __future__ import annotations

import shutil

from benchmarks.context import Context
from benchmarks.measure import Side, take_turns
from benchmarks.ours import WHOLE_RUNS, TemporaryProject
from benchmarks.results import Row, compared

_EPOCHS = 10


def run(context: Context) -> None:
    """One epoch of each side, or all (`whole`); ours is the preset `book`, its three stages as whole processes."""
    text = context.text("the-verdict.txt")
    code = context.peer("book", "the book's run")
    if text is None or code is None:
        return
    epochs = _EPOCHS if context.whole else 1
    for threads in (1, 2):
        project = TemporaryProject(context.folder / f"book-{threads}")
        shutil.copy(text, project.raw)
        project.preset("book")
        settings = (f"train.budget.amount={epochs}", f"runtime.threads={threads}", *WHOLE_RUNS)
        sides = [
            project.side("ours", ["tokenize", "split", "train"], settings, epochs, 0, context.vocabulary, threads),
            Side(
                "the book", "benchmarks.peers:book_run",
                {"text": str(text), "epochs": epochs, "threads": threads}, threads,
                (code[0] / "ch05" / "01_main-chapter-code",), context.vocabulary,
            ),
        ]  # fmt: skip
        done = take_turns(sides, 1)
        what = f"the book's run, {epochs} epoch{'s' * (epochs > 1)}, {threads} thread{'s' * (threads > 1)}"
        ours, theirs = done["ours"], done["the book"]
        row = compared(what, "the book", ours, theirs, "epochs per processor-second", "the book's run")
        context.add(row)
        for name, each in done.items():
            context.add(Row(f"{what}: processor time of {name}", "", each.processor, "seconds", wall=each.wall))
        if threads == 1 and not context.whole:
            context.results.skipped["the other nine epochs"] = "they repeat the first; --whole-book runs them all"
