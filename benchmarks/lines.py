"""Counts lines of Python by package of pipeline/, and in plugins/: `python -m benchmarks.lines`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.measure import ROOT

OPTIONAL = ("commands", "comparison", "authoring", "exporting", "evaluate/report", "train/distributed")
"""The packages of pipeline/ that do not count as core."""


def rooms(root: Path = ROOT) -> Counter[str]:
    """Lines of Python by package: an optional one, else the top-level file or folder in pipeline/."""
    counts: Counter[str] = Counter()
    for path in sorted((root / "pipeline").rglob("*.py")):
        inside = path.relative_to(root / "pipeline").as_posix()
        room = next((each for each in OPTIONAL if inside.startswith(f"{each}/")), inside.partition("/")[0])
        counts[room] += _lines(path)
    return counts


def _lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())


def table(root: Path = ROOT) -> list[str]:
    """The lines of the core packages, the optional packages (with totals), and plugins/."""
    counts = rooms(root)
    optional = {room: counts.pop(room) for room in OPTIONAL}
    rows = [(f"  {room}", lines) for room, lines in counts.items()] + [("the core", counts.total())]
    rows += [(f"  {room}", lines) for room, lines in optional.items()] + [("optional", sum(optional.values()))]
    rows += [("plugins/", sum(map(_lines, (root / "plugins").rglob("*.py"))))]
    return [f"{room:<22}{lines:>7,}" for room, lines in rows]


if __name__ == "__main__":
    print("\n".join(table()))
