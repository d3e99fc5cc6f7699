"""The paths of the project: file names that the stages, dvc.yaml and users share."""

from __future__ import annotations

import os
from pathlib import Path

EVALUATION = "evaluation.json"
"""The file in reports/ with the details of an evaluation."""
RECORD = "run.json"
"""The file in a stage's output with the record of its run; `identity` is its fingerprint."""
TOKEN_STORE = "tokens"
"""The folder in .resume with the shards that tokenize has made; the other folders are training runs."""
METRICS = "metrics"
"""The folder in a stage's output with copies of its metrics."""


class Paths:
    """The project's folders and files; `root` is the working directory of the command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "data" / "raw"
        self.tasks = root / "data" / "tasks"
        self.weights = root / "data" / "weights"
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
        # Outside the outputs, which DVC deletes before each run, and in the main project (DVC_ROOT): DVC runs some
        # experiments in a copy.
        self.resume = Path(os.environ.get("DVC_ROOT") or root) / ".resume"
        self.token_store = self.resume / TOKEN_STORE

    def shown(self, path: Path) -> str:
        """The path relative to the project, for messages."""
        return path.relative_to(self.root).as_posix()
