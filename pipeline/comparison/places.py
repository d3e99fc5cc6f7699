"""Where a run's files are: in a folder, or in a git revision (a DVC experiment is one) and DVC's cache."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

from pipeline.core.errors import DataError, PipelineError
from pipeline.core.yaml import yaml_values

_REPORTS = "reports"
_REPRO = "run `dvc repro`"


class Place(Protocol):
    """Where the files of one run are read from."""

    @property
    def name(self) -> str:
        """What a person calls it."""

    def read(self, path: str) -> str:
        """The text of a file, named as in the project, such as metrics/evaluate.json or reports/documents.tsv.

        Raises:
            PipelineError: it is not there; the message says how to get it.
        """


@dataclass(frozen=True)
class Folder:
    """A project's folder, or a copy of its metrics/ and reports/."""

    root: Path
    name: str

    def read(self, path: str) -> str:
        try:
            return (self.root / path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataError(f"{self.name}: {path} is missing: {_REPRO} there") from None
        except UnicodeDecodeError:
            raise DataError(f"{self.name}: {path} is damaged (no UTF-8 text): {_REPRO} there") from None


@dataclass(frozen=True)
class Revision:
    """A commit of the project in `root`; what DVC keeps of it is read from DVC's cache."""

    root: Path
    name: str
    commit: str

    def read(self, path: str) -> str:
        folder, _, inside = path.partition("/")
        if folder != _REPORTS:
            return self._committed(path)
        try:
            digest = self._reports[inside]
        except KeyError:
            raise DataError(
                f"{self.name}: its {_REPORTS} hold no {inside}: {_REPRO} there with this version, and commit"
            ) from None
        return self._cached(digest)

    def _committed(self, path: str) -> str:
        found = _git(self.root, "show", f"{self.commit}:./{path}")
        if found is None:
            raise DataError(f"{self.name}: {path} is not in that commit: {_REPRO}, then `git add` it and commit")
        return found

    @cached_property
    def _reports(self) -> dict[str, str]:
        """The files of the reports folder, and their md5."""
        lock = yaml_values(self._committed("dvc.lock"))
        try:
            outs = lock["stages"]["evaluate"]["outs"]
            (digest,) = (out["md5"] for out in outs if out["path"] == _REPORTS)
            listing = json.loads(self._cached(digest))
            return {entry["relpath"]: entry["md5"] for entry in listing}
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{self.name}: dvc.lock names no {_REPORTS} of evaluate: {_REPRO} and commit") from None

    def _cached(self, digest: str) -> str:
        for cache in _caches(self.root):
            path = cache / "files" / "md5" / digest[:2] / digest[2:]
            if path.is_file():
                return path.read_text(encoding="utf-8")
        raise DataError(
            f"{self.name}: its {_REPORTS} are not in DVC's cache: `dvc fetch --all-commits` brings them from a "
            f"remote, and `git checkout {self.commit[:10]} && dvc repro` makes them again"
        )


def find_place(root: Path, name: str) -> Place:
    """The folder, git revision or DVC experiment that `name` stands for, in this order.

    Raises:
        PipelineError: it is none of them.
    """
    folder = root / name
    if (folder / "metrics").is_dir() or (folder / _REPORTS).is_dir():
        return Folder(folder, "working tree" if folder.samefile(root) else name)
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if commit:
        return Revision(root, name, commit.strip())
    experiments = _experiments(root)
    found = experiments.get(name, [])
    if len(found) == 1:
        return Revision(root, name, found[0])
    if found:
        commits = ", ".join(each[:7] for each in found)
        raise PipelineError(f"{name!r} is the name of several experiments: take one of the commits {commits}")
    if _git(root, "rev-parse", "--git-dir") is None:
        raise PipelineError(f"{name!r} is no folder with metrics/ and reports/, and there is no git here to ask")
    there = f" (experiments: {', '.join(sorted(experiments))})" if experiments else ""
    raise PipelineError(f"{name!r} is no folder with results, no git revision and no DVC experiment{there}")


def _experiments(root: Path) -> dict[str, list[str]]:
    """The commits of DVC's experiments by name; they are git references, refs/exps/BA/SELINE/NAME."""
    listed = _git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or ""
    found: dict[str, list[str]] = {}
    for line in listed.splitlines():
        commit, _, reference = line.partition(" ")
        parts = reference.split("/")
        if len(parts) == 5 and len(parts[2]) == 2:  # others are DVC's queue and its own notes
            found.setdefault(parts[4], []).append(commit)
    return found


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except FileNotFoundError:
        raise PipelineError("git is not installed: compare folders, or install it") from None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None


def _caches(root: Path) -> Iterator[Path]:
    """Where DVC's cache is by default, and then where its settings have it."""
    yield root / ".dvc" / "cache"
    configured = _configured_cache(root)
    if configured:
        yield configured


@lru_cache
def _configured_cache(root: Path) -> Path | None:
    """What DVC says, which takes it a second; None where it cannot."""
    ask = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(ask, cwd=root, capture_output=True, check=False)
    return Path(done.stdout.decode().strip()) if done.returncode == 0 else None
