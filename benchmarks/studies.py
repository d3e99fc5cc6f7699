"""Results of a study of variants and seeds: the runs, their summary, and its part of benchmarks/RESULTS.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from benchmarks.document import DOCUMENT, between, where
from benchmarks.results import FOLDER, Results

SHIPPED = "as shipped"
"""The variant with which the others of the ablation are compared."""

FAST, EXACT = "fast", "fp32"
"""The variants of the study of precision."""


@dataclass(frozen=True)
class Trained:
    """A completed run.

    Attributes:
        preset, variant, seed: The identity of the run.
        settings: The settings of the variant.
        loss: The loss of the last step on all of val, in nats.
        steps, losses: The evaluations during training: val.loss on the preset's number of windows, in nats.
        parameters: The number of parameters of the model.
        step_seconds: Processor seconds of the training steps, without the compiler's own processes.
        stage_seconds: Processor seconds of the whole train stage: start-up, compilers and evaluations as well.
    """

    preset: str
    variant: str
    seed: int
    settings: list[str]
    loss: float
    steps: list[int]
    losses: list[float]
    parameters: int
    step_seconds: float
    stage_seconds: float


@dataclass
class Study(Results):
    """The runs of a study; `skipped` are those that failed."""

    runs: list[Trained] = field(default_factory=list)

    def of(self, preset: str, variant: str) -> list[Trained]:
        """The runs of a variant, sorted by seed."""
        found = [run for run in self.runs if (run.preset, run.variant) == (preset, variant)]
        return sorted(found, key=lambda run: run.seed)


def read(folder: Path, subject: str) -> Study | None:
    """The results of a study, or None."""
    path = folder / f"{subject}.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return Study(**{**values, "runs": [Trained(**run) for run in values["runs"]]})


def difference(ours: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The difference of two means, and its standard error, √(s₁²/n₁ + s₂²/n₂) (Welch, 1947)."""
    error = sum(stdev(values) ** 2 / len(values) for values in (ours, others)) ** 0.5
    return mean(ours) - mean(others), error


def markdown(study: Study | None, subject: str) -> str:
    """The Markdown between the two comments of a study."""
    if study is None or not study.runs:
        return f"Not measured yet: `python -m benchmarks.variants {subject}` fills this in.\n"
    parts = [where(study), f"`{study.command}`, {study.seconds:,.0f} s\n"]
    for preset in dict.fromkeys(run.preset for run in study.runs):
        parts += _ablation(study, preset) if subject == "ablation" else _precision(study, preset)
    failed = [f"- Failed: {what} ({why})" for what, why in study.skipped.items()]
    return "\n".join([*parts, *(["\n".join(failed) + "\n"] if failed else [])])


def _ablation(study: Study, preset: str) -> list[str]:
    shipped = [run.loss for run in study.of(preset, SHIPPED)]
    rows = [("", "seeds", "val loss", f"against {SHIPPED}", "seconds of steps", "of the stage", "parameters")]
    for variant in dict.fromkeys(run.variant for run in study.runs):
        runs = study.of(preset, variant)
        losses = [run.loss for run in runs]
        against = ""
        if variant != SHIPPED and min(len(losses), len(shipped)) > 1:
            gap, error = difference(losses, shipped)
            against = f"{gap:+.4f} ± {2 * error:.4f}"
        rows.append((
            variant, str(len(runs)), _spread(losses, 4), against, _spread([run.step_seconds for run in runs], 2),
            _spread([run.stage_seconds for run in runs], 2), f"{runs[0].parameters:,}",
        ))  # fmt: skip
    sets = {run.variant: run.settings for run in study.runs if run.settings}
    return [_table(rows), "\n".join(f"- {name}: `{' '.join(settings)}`" for name, settings in sets.items()) + "\n"]


def _precision(study: Study, preset: str) -> list[str]:
    fast, exact = study.of(preset, FAST), study.of(preset, EXACT)
    rows = [("step", FAST, EXACT, "difference", "two standard errors", "within")]
    for step in dict.fromkeys(step for run in (*fast, *exact) for step in run.steps):
        sides = [[run.losses[run.steps.index(step)] for run in runs if step in run.steps] for runs in (fast, exact)]
        rows.append((f"{step:,}", *_compared(*sides)))
    rows.append(("the last, all of val", *_compared([run.loss for run in fast], [run.loss for run in exact])))
    said = []
    for name, runs in ((FAST, fast), (EXACT, exact)):
        steps, stage = (
            _spread([getattr(run, each) for run in runs], 1) for each in ("step_seconds", "stage_seconds")
        )
        settings = f" (`{' '.join(runs[0].settings)}`)" if runs else ""
        said.append(
            f"- {name}{settings}: {len(runs)} seeds; processor seconds of the steps {steps}, of the stage {stage}"
        )
    return [f"### The preset {preset}\n", _table(rows), "\n".join(said) + "\n"]


def _compared(fast: list[float], exact: list[float]) -> tuple[str, ...]:
    means = (_spread(fast, 4), _spread(exact, 4))
    if min(len(fast), len(exact)) < 2:
        return (*means, "", "", "")
    gap, error = difference(fast, exact)
    return (*means, f"{gap:+.4f}", f"{2 * error:.4f}", "yes" if abs(gap) <= 2 * error else "no")


def _spread(values: Sequence[float], digits: int) -> str:
    """The mean ± the standard deviation."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):,.{digits}f}{spread}"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [rows[0], ("---", *["---:"] * (len(rows[0]) - 1)), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def with_tables(text: str, studies: Iterable[tuple[str, Study | None]]) -> str:
    """The document's text with each study's part between its two comments."""
    for subject, study in studies:
        begin, end = f"<!-- {subject} table -->", f"<!-- end of the {subject} table -->"
        text = between(text, begin, end, markdown(study, subject))
    return text


def every(folder: Path = FOLDER) -> list[tuple[str, Study | None]]:
    """Both studies, each with its name."""
    return [(subject, read(folder, subject)) for subject in ("ablation", "precision")]


def write(document: Path = DOCUMENT, folder: Path = FOLDER) -> None:
    """Puts the tables of the results in `folder` into the document."""
    text = document.read_text(encoding="utf-8")
    document.write_text(with_tables(text, every(folder)), encoding="utf-8")
