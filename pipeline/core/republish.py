"""A result that DVC makes again although nothing that decides it has changed: published from DVC's cache as it was.

DVC compares files, so a comment, or a plugin that nobody chose, starts a stage. Each of these outputs is a folder
that holds the fingerprint of what decides it, and copies of the stage's metrics, which DVC does not cache.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.console import fact, say
from pipeline.core.dvc_cache import cached_folder, copy_files, recorded_digest
from pipeline.core.errors import DataError
from pipeline.core.paths import METRICS, RECORD
from pipeline.core.publication import published_folder

if TYPE_CHECKING:
    from pipeline.core.paths import Paths


def republished(stage: str, output: Path, identity: str, paths: Paths) -> bool:
    """Publishes the output that dvc.lock names once more, with its metrics, if it has this fingerprint.

    Returns:
        Whether it did. It does so only for a stage that DVC started: a stage that a person starts computes. Where
        DVC's cache lacks the output and a remote may have it, a line says how to get it.
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
        if not files:
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
        f"nothing that decides the result of {stage} has changed: it is published again from DVC's cache; "
        f"`python -m pipeline {stage}` makes it anew"
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
            f"note: DVC's cache lacks the output of {stage} that dvc.lock names: if nothing that decides it has "
            f"changed since, stop here, run `dvc fetch {stage}`, and it need not be made again"
        )
