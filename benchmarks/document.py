"""Writes tables of results into benchmarks/RESULTS.md, each between two comments."""

from __future__ import annotations

import re
from collections.abc import Iterable

from benchmarks.measure import ROOT
from benchmarks.results import Results

DOCUMENT = ROOT / "benchmarks" / "RESULTS.md"


def where(results: Iterable[Results]) -> str:
    """The machines and versions, and, if there are several, the subjects measured on each."""
    subjects_by_setup: dict[str, list[str]] = {}
    for each in results:
        facts = each.machine
        more = f", {', '.join(facts['instructions'])}" if facts.get("instructions") else ""
        versions = ", ".join(f"{name} {value}" for name, value in each.versions.items())
        setup = f"on {each.date}: {facts['processor']}, {facts['cores']} cores{more}; {versions}.\n"
        subjects_by_setup.setdefault(setup, []).append(each.subject)
    if len(subjects_by_setup) == 1:
        return "\n".join(f"Measured {setup}" for setup in subjects_by_setup)
    return "\n".join(
        f"{', '.join(subjects).capitalize()}: measured {setup}" for setup, subjects in subjects_by_setup.items()
    )


def between(text: str, begin: str, end: str, table: str) -> str:
    """`text` with `table` between the comments `begin` and `end`."""
    return re.sub(f"{begin}\n.*?{end}", lambda _: f"{begin}\n\n{table}\n{end}", text, flags=re.DOTALL)
