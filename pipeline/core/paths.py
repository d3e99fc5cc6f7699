"""Where everything lies: the file names that the stages, dvc.yaml and people share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

EVALUATION = "evaluation.json"
"""The file in reports/ that says what was evaluated and how."""


@dataclass(frozen=True)
class Paths:
    """The project's folders and files, relative to `root` (the folder in which a command was started)."""

    root: Path

    def shown(self, path: Path) -> str:
        """A path as messages name it: relative to the project."""
        return path.relative_to(self.root).as_posix()

    @property
    def raw(self) -> Path:
        return self.root / "data" / "raw"

    @property
    def plugins(self) -> Path:
        return self.root / "plugins"

    @property
    def tokens(self) -> Path:
        return self.root / "artifacts" / "tokens"

    @property
    def splits(self) -> Path:
        return self.root / "artifacts" / "splits"

    @property
    def checkpoint(self) -> Path:
        return self.root / "artifacts" / "checkpoint"

    @property
    def export(self) -> Path:
        return self.root / "artifacts" / "export"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def environment(self) -> Path:
        return self.root / "environment.yaml"

    @property
    def schema(self) -> Path:
        return self.root / "params.schema.json"

    @property
    def reference(self) -> Path:
        return self.root / "docs" / "params.md"

    @property
    def resume(self) -> Path:
        """Training states. DVC deletes a stage's outputs before each run, and runs some experiments in a
        copy of the project; so states live outside the outputs, in the main project (DVC_ROOT)."""
        return Path(os.environ.get("DVC_ROOT") or self.root) / ".resume"
