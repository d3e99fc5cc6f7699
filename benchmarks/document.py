"""Writes tables of results into benchmarks/RESULTS.md, each between two comments."""

from __future__ import annotations

from benchmarks.measure import ROOT
from benchmarks.results import Results

DOCUMENT = ROOT / "benchmarks" / "RESULTS.md"


def where(results: Results) -> str:
    """When, on which machine and with which versions something was measured."""
    facts = results.machine
    more = f", {', '.join(facts['instructions'])}" if facts.get("instructions") else ""
    versions = ", ".join(f"{name} {value}" for name, value in results.versions.items())
    cores = "1 core" if facts["cores"] == 1 else f"{facts['cores']} cores"
    return f"Measured on {results.date}: {facts['processor']}, {cores}{more}; {versions}.\n"


def between(text: str, begin: str, end: str, table: str) -> str:
    """`text` with `table` between the comments `begin` and `end`.

    Raises:
        ValueError: one of them is missing, so that the table would silently stay as it was.
    """
    before, found, rest = text.partition(f"{begin}\n")
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"RESULTS.md lacks {end if found else begin}")
    return f"{before}{begin}\n\n{table}\n{end}{after}"
