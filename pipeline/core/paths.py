"""Where everything lies: the file names that the stages, dvc.yaml and people share."""

from __future__ import annotations

import os
from pathlib import Path

EVALUATION = "evaluation.json"
"""The file in reports/ that says what was evaluated and how."""
RECORD = "run.json"
"""The file in a stage's output that says what made it: `identity` is its fingerprint."""
METRICS = "metrics"
"""The folder in a stage's output that holds copies of the metrics that belong to it."""


class Paths:
    """The project's folders and files, below `root` (the folder in which a command was started)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "data" / "raw"
        self.tasks = root / "data" / "tasks"
        self.plugins = root / "plugins"
        self.tokens = root / "artifacts" / "tokens"
        self.splits = root / "artifacts" / "splits"
        self.checkpoint = root / "artifacts" / "checkpoint"
        self.export = root / "artifacts" / "export"
        self.metrics = root / "metrics"
        self.reports = root / "reports"
        self.environment = root / "environment.yaml"
        self.schema = root / "params.schema.json"
        self.reference = root / "docs" / "params.md"
        # DVC deletes a stage's outputs before each run and runs some experiments in a copy of the project: training
        # checkpoints lie outside the outputs, in the main project (DVC_ROOT).
        self.resume = Path(os.environ.get("DVC_ROOT") or root) / ".resume"

    def shown(self, path: Path) -> str:
        """A path as messages name it: relative to the project."""
        return path.relative_to(self.root).as_posix()
