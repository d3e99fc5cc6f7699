"""The book's own run: ten epochs of GPT-2 small over a short story, with its evaluations and samples."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.context import Context
from benchmarks.measure import Side, take_turns
from benchmarks.ours import WHOLE_RUNS, TemporaryProject
from benchmarks.results import Row

_EPOCHS = 10


def run(context: Context) -> None:
    """Ten epochs of each side: all of them (`whole`), or reckoned from fewer. Of the book one counts for all, which
    are alike. Of ours, a run of two and one of three: what comes once (start-up, compiling, saving) is in both; one
    alone is not compiled.

    Ours is the preset `book`, its three stages as whole processes.
    """
    text = context.text("the-verdict.txt")
    code = context.peer("book", "the book's run")
    if text is None or code is None:
        return
    epochs = (_EPOCHS,) if context.whole else (2, 3)
    sides = [_ours(context, text, count) for count in epochs]
    sides.append(
        Side(
            "the book", "benchmarks.peers:book_run",
            {"text": str(text), "epochs": _EPOCHS if context.whole else 1, "threads": 1},
            code=(code[0] / "ch05" / "01_main-chapter-code",), environment=context.vocabulary,
        )
    )  # fmt: skip
    done = take_turns(sides, 1)
    processor = [done[side.name].processor for side in sides]
    wall = [done[side.name].wall for side in sides]
    if context.whole:
        how = "all ten epochs were run"
    else:
        how = "of ten: the book's first is counted ten times, our first two once and our third eight times"
        processor, wall = ([two + 8 * (three - two), 10 * theirs] for two, three, theirs in (processor, wall))
    context.add(
        Row(
            "the book's run, 1 thread", "the book", processor[1] / processor[0], "times", "processor-seconds",
            *processor, wall[1] / wall[0], goal="the book's run", note=how,
        )
    )  # fmt: skip
    for side in sides:
        each = done[side.name]
        context.add(Row(f"the book's run: {side.name}", "", each.processor, "seconds", wall=each.wall))


def _ours(context: Context, text: Path, epochs: int) -> Side:
    project = TemporaryProject(context.folder / f"book-{epochs}")
    shutil.copy(text, project.raw)
    project.preset("book")
    settings = (f"train.budget.amount={epochs}", "runtime.threads=1", *WHOLE_RUNS)
    name = f"ours, {epochs} epoch{'s' * (epochs > 1)}"
    return project.side(name, ["tokenize", "split", "train"], settings, epochs, 0, context.vocabulary)
