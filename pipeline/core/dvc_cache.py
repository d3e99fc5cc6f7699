"""Outputs of an earlier `dvc repro` as DVC keeps them: dvc.lock names them, DVC's cache holds them.

DVC deletes a stage's outputs before it runs the stage, so what it made before is found here only. DVC itself is
asked where its cache is, and never imported.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import Field
from ruamel.yaml.error import YAMLError

from pipeline.core.errors import DataError
from pipeline.core.values import read_values
from pipeline.core.yaml import yaml_values

_DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class _Listed:
    """A file of a folder, as DVC's cache lists it."""

    relpath: str
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


def recorded_digest(lock: str, stage: str, kind: str, path: str) -> str | None:
    """The digest of a stage's output (`kind` "outs") or dependency ("deps") by the text of dvc.lock; None where it
    names none."""
    try:
        files: list[Any] = yaml_values(lock)["stages"][stage][kind]
        found = next((str(file["md5"]) for file in files if file["path"] == path), "")
    except (KeyError, TypeError, ValueError, YAMLError):  # such as merge conflict markers
        return None
    return found if _DIGEST.fullmatch(found) else None


def cached_file(root: Path, digest: str) -> Path | None:
    """The file of the cache with this digest; None where it is not there, such as only in a remote."""
    for cache in _caches(root):
        path = cache / "files" / "md5" / digest[:2] / digest[2:]
        if path.is_file():
            return path
    return None


def cached_folder(root: Path, digest: str) -> dict[str, Path]:
    """The files of a folder of the cache by their path in it; empty unless all are there.

    Raises:
        DataError: the cache's list of the folder's files is damaged.
    """
    listing = cached_file(root, digest)
    if listing is None:
        return {}
    fix = "it is of DVC's cache: remove it, and `dvc fetch` or `dvc repro`"
    entries = read_values(listing, list[_Listed], fix)
    if any(PurePath(each.relpath).is_absolute() or ".." in PurePath(each.relpath).parts for each in entries):
        raise DataError(f"{listing} is damaged (it lists a file outside of its folder): {fix}")
    found = {each.relpath: cached_file(root, each.md5) for each in entries}
    return {name: path for name, path in found.items() if path} if all(found.values()) else {}


def copy_files(files: dict[str, Path], folder: Path) -> None:
    """Copies a folder of the cache.

    Raises:
        DataError: a file is not what its name, which is its md5, says.
    """
    for name, path in files.items():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        with copy.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() != path.parent.name + path.name:
                raise DataError(f"{path} of DVC's cache is damaged: remove it, and `dvc fetch` or `dvc repro`")


def _caches(root: Path) -> Iterator[Path]:
    """Where DVC's cache is by default, and then where its settings have it."""
    yield Path(os.environ.get("DVC_ROOT") or root) / ".dvc" / "cache"
    configured = _configured_cache(root)
    if configured:
        yield configured


@lru_cache
def _configured_cache(root: Path) -> Path | None:
    """What DVC says, which takes it a second; None where it cannot."""
    ask = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(ask, cwd=root, capture_output=True, check=False)
    return Path(done.stdout.decode().strip()) if done.returncode == 0 else None
