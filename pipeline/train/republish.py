"""A finished run that DVC starts again although nothing that decides its result has changed: published as it was.

DVC compares files, so a comment or a plugin that nobody chose starts the stage. Where the run's states are in
`.resume`, the stage publishes from them; elsewhere, as in a fresh clone after `dvc pull`, from DVC's cache.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.core.console import fact, say
from pipeline.core.dvc_cache import cached_folder, copy_files, output_digest
from pipeline.core.errors import DataError
from pipeline.core.files import published_folder, verify_manifest, write_atomically
from pipeline.model.checkpoint import METRICS, RECORD

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.paths import Paths


def republished(identity: str, paths: Paths) -> bool:
    """Publishes the checkpoint that dvc.lock names once more, with its metrics, if its run has this identity.

    Returns:
        Whether it did. Where DVC's cache lacks the checkpoint and a remote may have it, a line says how to get it.
    """
    lock = paths.root / "dvc.lock"
    text = lock.read_text(encoding="utf-8", errors="replace") if lock.is_file() else ""
    digest = output_digest(text, "train", paths.shown(paths.checkpoint))
    if digest is None:
        return False
    try:
        files = cached_folder(paths.root, digest)
        if not files:
            _say_where(paths)
            return False
        if _identity(files) != identity:
            return False
        with published_folder(paths.checkpoint) as folder:
            copy_files(files, folder)
            verify_manifest(folder, "training starts from the beginning")
    except DataError as error:
        say(f"note: {error}")
        return False
    for path in sorted((paths.checkpoint / METRICS).iterdir()):
        write_atomically(paths.metrics / path.name, path.read_bytes())
    say("this run is already complete in DVC's cache: its result is published again")
    fact("wrote", f"{paths.shown(paths.checkpoint)}, {paths.shown(paths.metrics)}/train.json, history.tsv")
    return True


def _identity(files: dict[str, Path]) -> str:
    try:
        return str(json.loads(files[RECORD].read_bytes())["identity"])
    except (KeyError, TypeError, ValueError):
        return ""


def _say_where(paths: Paths) -> None:
    config = paths.root / ".dvc" / "config"
    if config.is_file() and "remote" in config.read_text(encoding="utf-8"):
        say(
            "note: DVC's cache lacks the checkpoint that dvc.lock names: if nothing that decides the result has "
            "changed since, stop here, run `dvc fetch train`, and it need not be trained again"
        )
