"""Where the files of a run are read from: a folder, or a git revision (also a DVC experiment) and DVC's cache."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import psutil

from pipeline.core.dvc_cache import cached_folder, recorded_digest
from pipeline.core.errors import DataError, PipelineError

_REPORTS = "reports"
_REMEDY = "run `dvc repro`"
_CHECKPOINT = (("evaluate", "deps", "artifacts/checkpoint"), ("train", "outs", "artifacts/checkpoint"))


class RunSource(Protocol):
    """A place to read the files of one run from."""

    @property
    def name(self) -> str:
        """The name of the run for people."""

    def read(self, path: str) -> str:
        """Returns the text of a file. `path` is relative to the project, such as metrics/evaluate.json.

        Raises:
            PipelineError: the file is missing or not UTF-8; the message says how to get it.
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
            raise DataError(f"{self.name}: {path} is damaged (not UTF-8): {_REMEDY} there") from None


@dataclass(frozen=True)
class Revision:
    """A commit of the project in `root`. Files that DVC tracks are read from DVC's cache."""

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
                f"{self.name}: {path} is damaged (not UTF-8): remove {self._reports[inside]} from DVC's cache, "
                "then run `dvc fetch` or `dvc repro`"
            ) from None
        except KeyError:
            raise DataError(
                f"{self.name}: its {_REPORTS} have no {inside}: {_REMEDY} there with this version, and commit"
            ) from None

    def _committed(self, path: str) -> str:
        text = _git(self.root, "show", f"{self.commit}:./{path}")
        if text is None:
            raise DataError(f"{self.name}: {path} is not in that commit: {_REMEDY}, then `git add` it and commit")
        return text

    @cached_property
    def _reports(self) -> dict[str, Path]:
        """The paths in DVC's cache of the files in the reports folder, by name."""
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
                f"{self.name}: dvc.lock names no {_REPORTS} of evaluate, or is not YAML (conflict markers?): "
                f"{_REMEDY} and commit"
            )
        files = cached_folder(self.root, digest)
        if not files:
            branch = f"git branch -f compared {self.commit[:10]}"  # `dvc fetch` takes branches, not commits
            remedy = f"`{branch} && dvc fetch --all-branches {_REPORTS}` gets them from a DVC remote"
            if self.experiment:
                remedy = f"`dvc exp pull REMOTE {self.name}` (a git remote) gets them if they were pushed"
            raise DataError(
                f"{self.name}: its {_REPORTS} are not in DVC's cache: {remedy}, and "
                f"`git checkout {self.commit[:10]} && dvc repro evaluate` recreates them"
            )
        return files


def find_source(root: Path, name: str) -> RunSource:
    """Finds the folder, git revision or DVC experiment called `name`, in this order.

    Raises:
        PipelineError: there is none.
    """
    folder = root / name
    if (folder / "metrics").is_dir() or (folder / _REPORTS).is_dir():
        return Folder(folder, "working tree" if folder.samefile(root) else name)
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if commit:
        return Revision(root, name, commit.strip())
    experiments = _experiments(root)
    matches = [each.commit for each in experiments if each.name == name]
    if len(matches) == 1:
        return Revision(root, name, matches[0], experiment=True)
    if matches:
        commits = ", ".join(each[:7] for each in matches)
        raise PipelineError(f"{name!r} is the name of several experiments: give one of the commits {commits}")
    if name in _running(root):
        raise PipelineError(f"{name} is an experiment that is still running: compare it when it is done")
    if name in _queued(root, "stash"):
        raise PipelineError(f"{name} is an experiment that is still in the queue: `dvc queue start` runs the queue")
    if name in _queued(root, "failed"):
        raise PipelineError(f"{name} is an experiment that failed: `dvc queue logs {name}` shows why")
    if not (root / "params.yaml").is_file():
        raise PipelineError(f"{name!r} was not found, and params.yaml is missing: run this in the project's folder")
    if folder.is_dir() and folder.samefile(root):
        raise PipelineError(
            "the working tree has no results (metrics/ and reports/): run `dvc repro`, or give two commits or "
            "experiments"
        )
    if _git(root, "rev-parse", "--git-dir") is None:
        raise PipelineError(
            f"{name!r} is not a folder with metrics/ and reports/, and this is not a git repository"
        )
    known_experiments = (
        f" (experiments: {', '.join(sorted(each.name for each in experiments))})" if experiments else ""
    )
    raise PipelineError(
        f"{name!r} is not a folder with results, a git revision or a DVC experiment{known_experiments}"
        f"{_elsewhere(root, name)}"
    )


def _elsewhere(root: Path, name: str) -> str:
    """What brings commits and experiments from the git remote, if there is one."""
    remotes = (_git(root, "remote") or "").split()
    if not remotes:
        return ""
    remote = "origin" if "origin" in remotes else remotes[0]
    found = f": `dvc exp pull {remote} {name}` brings an experiment that was pushed"
    if (_git(root, "rev-parse", "--is-shallow-repository") or "").strip() == "true":
        branches = f"'+refs/heads/*:refs/remotes/{remote}/*'"
        found += f"; this clone is shallow: `git fetch --unshallow {remote} {branches}` brings the other commits"
    return found


@dataclass(frozen=True)
class Experiments:
    """The DVC experiments based on a commit: the complete ones, and the names of the others by state."""

    done: list[RunSource]
    failed: list[str]
    running: list[str]
    waiting: list[str]

    def __bool__(self) -> bool:
        return bool(self.done or self.failed or self.running or self.waiting)


def find_experiments(root: Path, name: str) -> Experiments | None:
    """The experiments based on the git revision `name`; None if it is not a revision or has none."""
    commit = (_git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") or "").strip()
    if not commit:
        return None
    running = _running(root, commit)  # before the complete ones: what ends meanwhile is in both lists, not in none
    done = [Revision(root, each.name, each.commit, True) for each in _experiments(root) if each.baseline == commit]
    running = [each for each in running if each not in {run.name for run in done}]
    waiting = [each for each in _queued(root, "stash", commit) if each not in running]
    return Experiments(list[RunSource](done), _queued(root, "failed", commit), running, waiting) or None


@dataclass(frozen=True)
class _Reference:
    """The git reference of an experiment: refs/exps/BA/SELINE/NAME."""

    baseline: str
    name: str
    commit: str


def _experiments(root: Path) -> list[_Reference]:
    """All DVC experiments, sorted by name."""
    listed = _git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or ""
    references = []
    for line in listed.splitlines():
        commit, _, reference = line.partition(" ")
        parts = reference.split("/")
        if len(parts) == 5 and len(parts[2]) == 2:  # other references are DVC's queue and internal data
            references.append(_Reference(parts[2] + parts[3], parts[4], commit))
    return references


def _queued(root: Path, state: str, baseline: str | None = None) -> list[str]:
    """The names of the experiments of a commit (None: of all) in DVC's queue with this state. The reflog of
    refs/exps/celery/STATE has one line per experiment: `commit: dvc-exp:REVISION:BASELINE:NAME`."""
    lines = (_git(root, "log", "-g", "--format=%gs", f"refs/exps/celery/{state}", "--") or "").splitlines()
    parts = [line.split(":") for line in lines]
    return sorted(each[4] for each in parts if len(each) >= 5 and baseline in (None, each[3]))


_LAST_UNFINISHED = 3
"""DVC's TaskStatus.SUCCESS: the command is done, its results are not collected yet."""


def _running(root: Path, baseline: str | None = None) -> list[str]:
    """The names of the experiments of a commit (None: of all) that run in a copy of the project. DVC describes each
    in .dvc/tmp/exps/run/ID/ID.run, and the process of a queued one in ID.json beside it."""
    names = []
    for path in (root / ".dvc" / "tmp" / "exps" / "run").glob("*/*.run"):
        described = _read_json(path)
        process = _read_json(path.with_suffix(".json"))
        if (
            described.get("status", _LAST_UNFINISHED + 1) <= _LAST_UNFINISHED
            and baseline in (None, described.get("baseline_rev"))
            and Path(described.get("root_dir") or "").is_dir()  # DVC removes the copy at the end
            and (
                process.get("returncode") is not None
                or process.get("pid") is None
                or psutil.pid_exists(process["pid"])
            )
        ):
            names.append(str(described.get("name") or path.stem[:7]))
    return sorted(names)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if it is missing or not complete yet."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _git(root: Path, *arguments: str) -> str | None:
    """The output of git, or None if it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except FileNotFoundError:
        raise PipelineError("git is not installed: install it, or compare folders") from None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None
