"""Results as rows, and their JSON files: one per subject, with machine, versions and command."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import machine, versions
from benchmarks.measure import Measured, ratios
from pipeline.core.files import write_atomically

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """A comparison with another project, or a single number of ours.

    Attributes:
        what: What was measured, such as "training S, 1 thread".
        against: The project compared with; empty for a single number.
        value: The value for the goal: the ratio of our rate to the other's, or the number itself.
        kind: What `value` is: "times", "share", "seconds", "nats", "count" or "bytes".
        unit: The unit of `ours` and `theirs`.
        ours, theirs: The medians of both sides, for a comparison.
        wall: Like `value`, but in wall time.
        rounds: The value of each round.
        goal: The key of its goal; empty for none.
        note: A remark.
    """

    what: str
    against: str
    value: float
    kind: str = "times"
    unit: str = ""
    ours: float | None = None
    theirs: float | None = None
    wall: float | None = None
    rounds: list[float] = field(default_factory=list)
    goal: str = ""
    note: str = ""


@dataclass
class Results:
    """The results of a subject.

    Attributes:
        subject: The subject, such as "training".
        rows: The results.
        skipped: What was not measured, with the reason.
        seconds: The duration of the benchmark.
        machine, versions, command, date: Where, with what and when it was measured.
        load: The load average of the minute before the start.
    """

    subject: str
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    machine: dict[str, Any] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)
    command: str = field(default_factory=lambda: shown_command(sys.argv[1:]))
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d}")

    def write(self, folder: Path) -> Path:
        """Writes SUBJECT.json."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.subject}.json"
        write_atomically(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path


def read(folder: Path, subjects: Sequence[str]) -> list[Results]:
    """Reads the results in a folder, in the order of `subjects`."""
    found = []
    for subject in subjects:
        path = folder / f"{subject}.json"
        if path.exists():
            values = json.loads(path.read_text(encoding="utf-8"))
            found.append(Results(**{**values, "rows": [Row(**row) for row in values["rows"]]}))
    return found


def compared(what: str, against: str, ours: Measured, theirs: Measured, unit: str, goal: str = "") -> Row:
    """A row with the ratio of our rate to the other's: the median over rounds, in processor and wall time."""
    each = ratios(ours.rounds, theirs.rounds)
    setting = theirs.facts.get("setting")
    return Row(
        what=what,
        against=f"{against} ({setting})" if setting else against,
        value=median(each),
        unit=unit,
        ours=ours.rate,
        theirs=theirs.rate,
        wall=median(ratios(ours.rounds, theirs.rounds, wall=True)),
        rounds=each,
        goal=goal,
    )


def shown_command(arguments: Sequence[str], module: str = "benchmarks") -> str:
    """The command line, without paths of the machine."""
    words = [Path(word).name if word.startswith(("/", "~", ".")) else word for word in arguments]
    return shlex.join(["python", "-m", module, *words])
