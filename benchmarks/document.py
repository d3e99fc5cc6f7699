"""docs/performance.md: where the tables of results stand in it, between two comments each."""

from __future__ import annotations

import re
from collections.abc import Iterable

from benchmarks.measure import ROOT
from benchmarks.results import Results

DOCUMENT = ROOT / "docs" / "performance.md"


def where(results: Iterable[Results]) -> str:
    """The machines and versions, each once."""
    said = []
    for each in results:
        facts = each.machine
        more = f", {', '.join(facts['instructions'])}" if facts.get("instructions") else ""
        versions = ", ".join(f"{name} {value}" for name, value in each.versions.items())
        said.append(f"Measured on {each.date}: {facts['processor']}, {facts['cores']} cores{more}; {versions}.\n")
    return "\n".join(dict.fromkeys(said))


def between(text: str, begin: str, end: str, table: str) -> str:
    """The text with `table` between the comments `begin` and `end`."""
    return re.sub(f"{begin}\n.*?{end}", lambda _: f"{begin}\n\n{table}\n{end}", text, flags=re.DOTALL)
