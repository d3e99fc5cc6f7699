"""The context of a benchmark: thoroughness, other projects' code, texts, and a working folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from benchmarks.measure import Measured, Side, SideFailedError, take_turns
from benchmarks.results import Results, Row, compared


@dataclass(frozen=True)
class Context:
    """The context of a subject.

    Attributes:
        quick: The short version; other projects are not compiled.
        rounds: Rounds per side; results are medians over them.
        folder: An empty folder for the subject, removed afterwards.
        code: Clones of other projects by name ("nanogpt", "litgpt", "book"), as far as given.
        data: The folder PIPELINE_TEST_DATA with texts and the gpt2 vocabulary.
        one_thread: Whether to measure training with one thread only, for a busy machine.
        whole: Whether to run all epochs of the book's training.
        results: The results, with what was skipped.
    """

    quick: bool
    rounds: int
    folder: Path
    code: dict[str, Path]
    data: Path | None
    one_thread: bool
    whole: bool
    results: Results = field(repr=False)

    def add(self, row: Row) -> None:
        """Adds a row to the results and prints it."""
        from benchmarks.table import plain

        self.results.rows.append(row)
        click.echo(plain([Results(self.results.subject, [row])]).splitlines()[1])

    def skip(self, what: str, why: str) -> None:
        """Records and prints what is not measured, and why."""
        self.results.skipped[what] = why
        click.echo(f"{what} is left out: {why}")

    def peer(self, name: str, shown: str) -> tuple[Path, ...] | None:
        """The folders to import another project from; None and a note if its path was not given."""
        if name in self.code:
            return (self.code[name],)
        self.skip(shown, f"no path to a clone was given (--{name})")
        return None

    def text(self, name: str) -> Path | None:
        """A file in PIPELINE_TEST_DATA; None and a note if it is missing."""
        if self.data is None:
            self.skip(f"what needs {name}", "PIPELINE_TEST_DATA names no folder")
            return None
        if not (self.data / name).exists():
            self.skip(f"what needs {name}", "it is not in the folder that PIPELINE_TEST_DATA names")
            return None
        return self.data / name

    @property
    def vocabulary(self) -> dict[str, str]:
        """Environment variables with which tiktoken loads the gpt2 encoding without network access."""
        cache = os.environ.get("TIKTOKEN_CACHE_DIR") or (str(self.data / "tiktoken") if self.data else "")
        return {"TIKTOKEN_CACHE_DIR": cache} if cache else {}

    def take_turns(self, sides: Sequence[Side]) -> dict[str, Measured]:
        """Calls `measure.take_turns`. If the side of another project fails, it is skipped, with its error."""
        ours, others = sides[0], list(sides[1:])
        while True:
            try:
                return take_turns([ours, *others], self.rounds)
            except SideFailedError as error:
                name, _, why = str(error).partition(": ")
                if name == ours.name or name not in {side.name for side in others}:
                    raise
                others = [side for side in others if side.name != name]
                self.skip(name, f"it failed: {why.splitlines()[-1] if why else 'no reason given'}")

    def compare(self, what: str, sides: Sequence[Side], unit: str, goals: dict[str, str]) -> dict[str, Measured]:
        """Measures the sides and adds a row for each one but the first, which is ours."""
        done = self.take_turns(sides)
        for side in sides[1:]:
            if side.name in done:
                ours = done[sides[0].name]
                self.add(compared(what, side.name, ours, done[side.name], unit, goals.get(side.name, "")))
        return done
