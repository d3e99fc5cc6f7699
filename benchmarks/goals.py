"""The goals of the project, and whether a result reaches them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results import Row


@dataclass(frozen=True)
class Goal:
    """A lower or upper bound for the value of a row."""

    bound: float
    at_least: bool = True

    def reached(self, value: float) -> bool:
        """Whether a value satisfies the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


GOALS = {
    "training against the book": Goal(5.0),
    "training against nanoGPT": Goal(4.0),
    "training S against litgpt": Goal(1.5),
    "training M against litgpt": Goal(1.4),
    "training B against litgpt": Goal(1.35),
    "training S against transformers": Goal(1.5),
    "training M against transformers": Goal(1.7),
    "training B against transformers": Goal(1.4),
    "training's share of GEMM": Goal(0.8),
    "training's share of GEMM with AMX": Goal(0.45),
    "the book's run": Goal(2.0),
    "nanoGPT's loss in a fifteenth of its time": Goal(15.0),
    "nanoGPT's loss": Goal(1.898, at_least=False),
    "nanoGPT's parameters": Goal(804_096, at_least=False),
    "best loss in nanoGPT's time": Goal(1.55, at_least=False),
    "no longer than nanoGPT": Goal(1.0),
    "generation against the book": Goal(10.0),
    "generation against transformers": Goal(2.0),
    "tokenize against tiktoken": Goal(1.5),
    "memory does not grow with the corpus": Goal(1.1, at_least=False),
    "the loader's share of a step": Goal(0.01, at_least=False),
    "--help": Goal(0.2, at_least=False),
    "no torch before it is needed": Goal(0, at_least=False),
    "a repro with nothing to do": Goal(0.9),
    "MFU on a GPU": Goal(0.6),
    "training against nanoGPT on a GPU": Goal(1.3),
}
"""The goals by the names that rows refer to."""


def verdict(row: Row) -> str:
    """ "reached" or "missed"; empty if the row has no goal."""
    if not row.goal:
        return ""
    return "reached" if GOALS[row.goal].reached(row.value) else "missed"
