"""Publishes a stage's earlier result from DVC's cache if nothing that decides it has changed.

DVC compares files: a changed comment, or an unused plugin, makes it run a stage again. The output folder holds the
fingerprint of everything that decides it, and copies of the stage's metrics, which DVC does not cache.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.console import fact, say
from pipeline.core.dvc_cache import cached_folder, copy_files, maybe_unchanged, recorded_digest
from pipeline.core.errors import DataError
from pipeline.core.paths import METRICS, RECORD
from pipeline.core.publication import published_folder

if TYPE_CHECKING:
    from pipeline.core.paths import Paths


def republished(stage: str, output: Path, identity: str, paths: Paths) -> bool:
    """Publishes the output in dvc.lock again, with its metrics, if its fingerprint is `identity`.

    Returns:
        Whether it did. It never does for a stage that a user starts directly. If DVC's cache lacks the output but a
        remote may have it, and params and inputs are those of that output, it prints how to fetch it.
    """
    if "DVC_STAGE" not in os.environ:
        return False
    lock = paths.root / "dvc.lock"
    text = lock.read_text(encoding="utf-8", errors="replace") if lock.is_file() else ""
    digest = recorded_digest(text, stage, "outs", paths.shown(output))
    if digest is None:
        return False
    try:
        files = cached_folder(paths.root, digest)
        if not files and maybe_unchanged(paths.root, text, stage):
            _say_where(stage, paths)
        if not files or _identity(files) != identity:
            return False
        with published_folder(output, paths) as folder:
            copy_files(files, folder)
    except DataError as error:
        say(f"note: {error}")
        return False
    metrics = sorted((output / METRICS).glob("*"))
    say(
        f"the result of {stage} is unchanged: it is published again from DVC's cache; to compute it anew, run "
        f"`python -m pipeline {stage}`"
    )
    fact(
        "wrote", ", ".join(paths.shown(path) for path in [output, *(paths.metrics / each.name for each in metrics)])
    )
    return True


def _identity(files: dict[str, Path]) -> str:
    try:
        return str(json.loads(files[RECORD].read_bytes())["identity"])
    except (KeyError, TypeError, ValueError):
        return ""


def _say_where(stage: str, paths: Paths) -> None:
    config = paths.root / ".dvc" / "config"
    if config.is_file() and "remote" in config.read_text(encoding="utf-8"):
        say(
            f"note: DVC's cache lacks the output of {stage} in dvc.lock. If nothing that decides it has changed, "
            f"stop this run and run `dvc fetch {stage}`"
        )
