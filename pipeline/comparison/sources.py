"""Where a run's files are: in a folder, or in a git revision (a DVC experiment is one) and DVC's cache."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from pipeline.core.dvc_cache import cached_folder, recorded_digest
from pipeline.core.errors import DataError, PipelineError

_REPORTS = "reports"
_REMEDY = "run `dvc repro`"
_CHECKPOINT = (("evaluate", "deps", "artifacts/checkpoint"), ("train", "outs", "artifacts/checkpoint"))


class RunSource(Protocol):
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
            raise DataError(f"{self.name}: {path} is missing: {_REMEDY} there") from None
        except UnicodeDecodeError:
            raise DataError(f"{self.name}: {path} is damaged (no UTF-8 text): {_REMEDY} there") from None


@dataclass(frozen=True)
class Revision:
    """A commit of the project in `root`; what DVC keeps of it is read from DVC's cache."""

    root: Path
    name: str
    commit: str
    experiment: bool = False

    def read(self, path: str) -> str:
        folder, _, inside = path.partition("/")
        if folder != _REPORTS:
            return self._committed(path)
        try:
            return self._reports[inside].read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise DataError(
                f"{self.name}: {path} is damaged (no UTF-8 text): remove {self._reports[inside]} of DVC's cache, "
                "and `dvc fetch` or `dvc repro`"
            ) from None
        except KeyError:
            raise DataError(
                f"{self.name}: its {_REPORTS} hold no {inside}: {_REMEDY} there with this version, and commit"
            ) from None

    def _committed(self, path: str) -> str:
        found = _git(self.root, "show", f"{self.commit}:./{path}")
        if found is None:
            raise DataError(f"{self.name}: {path} is not in that commit: {_REMEDY}, then `git add` it and commit")
        return found

    @cached_property
    def _reports(self) -> dict[str, Path]:
        """The files of the reports folder in DVC's cache, by name."""
        lock = self._committed("dvc.lock")
        evaluated, trained = (recorded_digest(lock, *each) for each in _CHECKPOINT)
        if evaluated != trained:
            raise DataError(
                f"{self.name}: its model was not evaluated: `git checkout {self.commit[:10]} && dvc repro "
                "evaluate`, or run it again with the target evaluate"
            )
        digest = recorded_digest(lock, "evaluate", "outs", _REPORTS)
        if digest is None:
            raise DataError(
                f"{self.name}: dvc.lock names no {_REPORTS} of evaluate, or is no YAML (conflict markers?): "
                f"{_REMEDY} and commit"
            )
        files = cached_folder(self.root, digest)
        if not files:
            brings = "`dvc fetch --all-commits` brings them from a remote"
            if self.experiment:
                brings = f"`dvc exp pull REMOTE {self.name}` (REMOTE: git's) brings them where they were pushed"
            raise DataError(
                f"{self.name}: its {_REPORTS} are not in DVC's cache: {brings}, and "
                f"`git checkout {self.commit[:10]} && dvc repro evaluate` makes them again"
            )
        return files


def find_source(root: Path, name: str) -> RunSource:
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
    found = [each.commit for each in experiments if each.name == name]
    if len(found) == 1:
        return Revision(root, name, found[0], experiment=True)
    if found:
        commits = ", ".join(each[:7] for each in found)
        raise PipelineError(f"{name!r} is the name of several experiments: take one of the commits {commits}")
    if _git(root, "rev-parse", "--git-dir") is None:
        raise PipelineError(f"{name!r} is no folder with metrics/ and reports/, and there is no git here to ask")
    there = f" (experiments: {', '.join(sorted(each.name for each in experiments))})" if experiments else ""
    raise PipelineError(f"{name!r} is no folder with results, no git revision and no DVC experiment{there}")


@dataclass(frozen=True)
class Experiments:
    """The DVC experiments that stand on a commit: those that are done, and the names of those that are not."""

    done: list[RunSource]
    failed: list[str]
    waiting: list[str]


def find_experiments(root: Path, name: str) -> Experiments | None:
    """The experiments on the git revision `name`; None where it is no revision, or has none."""
    commit = (_git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") or "").strip()
    found = Experiments(
        [Revision(root, each.name, each.commit, True) for each in _experiments(root) if each.baseline == commit],
        _queued(root, "failed", commit),
        _queued(root, "stash", commit),
    )
    return found if commit and (found.done or found.failed or found.waiting) else None


@dataclass(frozen=True)
class _Reference:
    """An experiment as git has it: refs/exps/BA/SELINE/NAME."""

    baseline: str
    name: str
    commit: str


def _experiments(root: Path) -> list[_Reference]:
    """DVC's experiments, in the order of their names."""
    listed = _git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or ""
    found = []
    for line in listed.splitlines():
        commit, _, reference = line.partition(" ")
        parts = reference.split("/")
        if len(parts) == 5 and len(parts[2]) == 2:  # others are DVC's queue and its own notes
            found.append(_Reference(parts[2] + parts[3], parts[4], commit))
    return found


def _queued(root: Path, state: str, baseline: str) -> list[str]:
    """The experiments on a commit that DVC's queue has in refs/exps/celery/STATE, one in each line of its reflog:
    `commit: dvc-exp:REVISION:BASELINE:NAME`."""
    lines = (_git(root, "log", "-g", "--format=%gs", f"refs/exps/celery/{state}", "--") or "").splitlines()
    parts = [line.split(":") for line in lines]
    return sorted(each[4] for each in parts if len(each) >= 5 and each[3] == baseline)


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except FileNotFoundError:
        raise PipelineError("git is not installed: compare folders, or install it") from None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None
