"""benchmarks/RESULTS.md: where the tables of results stand in it, between two comments each."""

from __future__ import annotations

import re
from collections.abc import Iterable

from benchmarks.measure import ROOT
from benchmarks.results import Results

DOCUMENT = ROOT / "benchmarks" / "RESULTS.md"


def where(results: Iterable[Results]) -> str:
    """The machines and versions, each once; with the subjects that were measured there, if there are several."""
    said: dict[str, list[str]] = {}
    for each in results:
        facts = each.machine
        more = f", {', '.join(facts['instructions'])}" if facts.get("instructions") else ""
        versions = ", ".join(f"{name} {value}" for name, value in each.versions.items())
        place = f"on {each.date}: {facts['processor']}, {facts['cores']} cores{more}; {versions}.\n"
        said.setdefault(place, []).append(each.subject)
    if len(said) == 1:
        return "\n".join(f"Measured {place}" for place in said)
    return "\n".join(f"{', '.join(subjects).capitalize()}: measured {place}" for place, subjects in said.items())


def between(text: str, begin: str, end: str, table: str) -> str:
    """The text with `table` between the comments `begin` and `end`."""
    return re.sub(f"{begin}\n.*?{end}", lambda _: f"{begin}\n\n{table}\n{end}", text, flags=re.DOTALL)
