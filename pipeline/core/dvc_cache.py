"""Outputs of an earlier `dvc repro`: dvc.lock has their digests, DVC's cache has their files.

DVC deletes a stage's outputs before it runs the stage, so that earlier outputs are only in the cache. DVC is called
for the location of its cache, and never imported.
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
from functools import lru_cache, reduce
from operator import getitem
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import Field
from ruamel.yaml.error import YAMLError

from pipeline.core.errors import DataError
from pipeline.core.params_diff import changed
from pipeline.core.values import read_values
from pipeline.core.yaml import read_yaml, yaml_values

_DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class _Listed:
    """An entry of a folder's listing in DVC's cache."""

    relpath: str
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


def recorded_digest(lock: str, stage: str, kind: str, path: str) -> str | None:
    """The digest of a stage's output (`kind` "outs") or dependency ("deps") in the text of dvc.lock; None if it has
    none."""
    try:
        files: list[Any] = yaml_values(lock)["stages"][stage][kind]
        found = next((str(file["md5"]) for file in files if file["path"] == path), "")
    except (KeyError, TypeError, ValueError, YAMLError):  # for example, merge conflict markers
        return None
    return found if _DIGEST.fullmatch(found) else None


def maybe_unchanged(root: Path, lock: str, stage: str) -> bool:
    """Whether a stage's params and the outputs of other stages that it reads are those in the text of dvc.lock.

    Texts and code that it reads are not compared.
    """
    try:
        stages = yaml_values(lock)["stages"]
        outs = {out["path"]: out["md5"] for each in stages.values() for out in each.get("outs", [])}
        if any(outs.get(dep["path"], dep["md5"]) != dep["md5"] for dep in stages[stage].get("deps", [])):
            return False
        for name, recorded in stages[stage].get("params", {}).items():
            now = yaml_values(read_yaml(root / name))
            if changed(recorded, {key: reduce(getitem, key.split("."), now) for key in recorded}):
                return False
    except (AttributeError, KeyError, OSError, TypeError, ValueError, YAMLError):
        return False
    return True


def cached_file(root: Path, digest: str) -> Path | None:
    """The cached file with this digest; None if it is not in the cache (it may be in a remote)."""
    for cache in _caches(root):
        path = cache / "files" / "md5" / digest[:2] / digest[2:]
        if path.is_file():
            return path
    return None


def cached_folder(root: Path, digest: str) -> dict[str, Path]:
    """The files of a cached folder, by their paths in it; empty unless all of them are cached.

    Raises:
        DataError: the folder's listing is corrupt.
    """
    listing = cached_file(root, digest)
    if listing is None:
        return {}
    fix = "it is in DVC's cache: remove it, and run `dvc fetch` or `dvc repro`"
    entries = read_values(listing, list[_Listed], fix)
    if any(PurePath(each.relpath).is_absolute() or ".." in PurePath(each.relpath).parts for each in entries):
        raise DataError(f"{listing} is damaged (it lists a file outside of its folder): {fix}")
    found = {each.relpath: cached_file(root, each.md5) for each in entries}
    return {name: path for name, path in found.items() if path} if all(found.values()) else {}


def copy_files(files: dict[str, Path], folder: Path) -> None:
    """Copies files of a cached folder to `folder`.

    Raises:
        DataError: a file's md5 differs from its name.
    """
    for name, path in files.items():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        with copy.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() != path.parent.name + path.name:
                raise DataError(f"{path} in DVC's cache is damaged: remove it, and run `dvc fetch` or `dvc repro`")


def _caches(root: Path) -> Iterator[Path]:
    """The cache folders: DVC's default, then the configured one."""
    yield Path(os.environ.get("DVC_ROOT") or root) / ".dvc" / "cache"
    configured = _configured_cache(root)
    if configured:
        yield configured


@lru_cache
def _configured_cache(root: Path) -> Path | None:
    """The configured cache, as `dvc cache dir` prints it (it takes a second); None if that fails."""
    ask = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(ask, cwd=root, capture_output=True, check=False)
    return Path(done.stdout.decode().strip()) if done.returncode == 0 else None
