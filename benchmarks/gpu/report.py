"""The table of the GPU benchmark: for the terminal, for benchmarks/RESULTS.md, and as results/gpu-NAME.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.document import DOCUMENT, between
from benchmarks.goals import GOALS
from benchmarks.gpu.part import Found
from benchmarks.machine import machine, versions
from benchmarks.results import FOLDER
from pipeline.core.files import write_atomically

BEGIN, END = "<!-- GPU table -->", "<!-- end of the GPU table -->"
_HEADER = ("", "result", "tokens/s", "of bf16 GEMM", "peak memory", "seconds", "note")
NONE = "No GPU has been measured yet.\n"


@dataclass
class Report:
    """What was found on one device, by the parts' names.

    Attributes:
        device: The GPU's name, or "cpu".
        command: The command line.
        found: The parts that ran, in order.
        seconds: The duration so far.
        machine, versions, date: Where, with what and when.
    """

    device: str
    command: str
    found: dict[str, Found] = field(default_factory=dict)
    seconds: float = 0.0
    machine: dict[str, Any] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d}")

    @property
    def name(self) -> str:
        """The name of its file."""
        words = "".join(each if each.isalnum() else " " for each in self.device.lower()).split()
        return "-".join(["gpu", *words])

    def write(self, folder: Path) -> Path:
        """Writes gpu-NAME.json."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        write_atomically(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> Report:
        """Reads what `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "found": {name: Found(**each) for name, each in values["found"].items()}})

    def share(self, found: Found) -> float | None:
        """The share of the measured bf16 matrix products that a training step reaches."""
        gemm = next((each.flops for each in self.found.values() if each.flops), None)
        if gemm is None or found.tokens_per_second is None or found.flops_per_token is None:
            return None
        return found.tokens_per_second * found.flops_per_token / gemm

    def rows(self) -> list[tuple[str, ...]]:
        """The cells, with the header."""
        return [_HEADER, *(self._cells(name, found) for name, found in self.found.items())]

    def _cells(self, name: str, found: Found) -> tuple[str, ...]:
        share, rate, memory = self.share(found), found.tokens_per_second, found.peak_memory
        return (
            name,
            found.result,
            f"{rate:,.0f}" if rate is not None else "",
            f"{share:.1%}" if share is not None else "",
            f"{memory / 1e9:.1f} GB" if memory is not None else "",
            f"{found.seconds:.0f}",
            found.note,
        )

    def verdicts(self) -> list[str]:
        """Our best 124M setting, held against the goals."""
        rates = {
            name: found
            for name, found in self.found.items()
            if name.startswith("124M, ")
            and found.tokens_per_second is not None
            and found.flops_per_token is not None
        }
        ours = [found for name, found in rates.items() if "nanoGPT" not in name]
        best = max(ours, key=lambda found: found.tokens_per_second or 0, default=None)
        if best is None:
            return []
        share, lines = self.share(best), []
        if share is not None:
            lines.append(_verdict("MFU on a GPU", share, f"{share:.1%} of bf16 GEMM", "60%"))
        theirs = next((found.tokens_per_second for name, found in rates.items() if "nanoGPT" in name), None)
        if theirs:
            times = (best.tokens_per_second or 0) / theirs
            lines.append(
                _verdict("training against nanoGPT on a GPU", times, f"{times:.2f}× nanoGPT compiled", "1.3×")
            )
        return lines

    def plain(self) -> str:
        """The table in columns, for a terminal."""
        rows = self.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join([*lines, *self.verdicts()])

    def markdown(self) -> str:
        """The table for a document."""
        lines = [f"| {' | '.join(cells)} |" for cells in self.rows()]
        lines.insert(1, "| --- | --- | ---: | ---: | ---: | ---: | --- |")
        packages = ", ".join(f"{name} {value}" for name, value in self.versions.items())
        about = f"`{self.command}` on {self.date}, {self.seconds:,.0f} s; {packages}."
        verdicts = [f"- {each}" for each in self.verdicts()]
        return "\n".join([f"### {self.device}", "", about, "", *lines, "", *verdicts]).rstrip() + "\n"


def _verdict(goal: str, value: float, shown: str, bound: str) -> str:
    verdict = "reached" if GOALS[goal].reached(value) else "missed"
    return f"124M at its best: {shown} (goal: at least {bound}): {verdict}"


def every(folder: Path = FOLDER) -> list[Report]:
    """All results in a folder."""
    return [Report.read(path) for path in sorted(folder.glob("gpu-*.json"))]


def with_table(text: str, reports: list[Report]) -> str:
    """The document's text with the tables of `reports` between its two comments."""
    return between(text, BEGIN, END, "\n".join(each.markdown() for each in reports) or NONE)


def write() -> None:
    """Puts the tables of all results into benchmarks/RESULTS.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(with_table(text, every()), encoding="utf-8")


if __name__ == "__main__":
    write()
