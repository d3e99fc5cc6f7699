"""The DVC experiments of a commit, read from git references as DVC writes them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pipeline.comparison.sources import find_experiments, find_source
from pipeline.core.errors import PipelineError


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    done = subprocess.run(["git", *who, *arguments], cwd=root, text=True, capture_output=True, check=True)
    return done.stdout.strip()


def commit(root: Path) -> str:
    git(root, "commit", "-q", "--allow-empty", "-m", "x")
    return git(root, "rev-parse", "HEAD")


RUNNING, FINISHED = 2, 6


def runs(root: Path, baseline: str, name: str, status: int, pid: int | None = None, copy: bool = True) -> None:
    """Writes what DVC does of an experiment that it runs in a copy of the project."""
    folder = root / ".dvc" / "tmp" / "exps" / "run" / name
    folder.mkdir(parents=True)
    described = {
        "baseline_rev": baseline,
        "root_dir": str(folder) if copy else "gone",
        "name": name,
        "status": status,
    }
    (folder / f"{name}.run").write_text(json.dumps(described))
    if pid:
        (folder / f"{name}.json").write_text(json.dumps({"pid": pid, "returncode": None}))


def test_the_experiments_of_a_commit_are_complete_failed_running_or_queued(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    other, base = commit(tmp_path), commit(tmp_path)
    assert find_experiments(tmp_path, "HEAD") is None
    assert find_experiments(tmp_path, "nothing") is None
    for baseline, name in ((base, "b"), (base, "a"), (other, "elsewhere")):
        git(tmp_path, "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}", base)
    for state, baseline, name in (
        ("failed", base, "broke"),
        ("stash", base, "waits"),
        ("stash", base, "runs"),
        ("stash", base, "also-waits"),
        ("stash", other, "elsewhere"),
    ):
        # Each new stash is another commit: a reference that does not move gets no line.
        stash = git(tmp_path, "commit-tree", f"{base}^{{tree}}", "-m", name)
        line = f"commit: dvc-exp:{base}:{baseline}:{name}"
        git(tmp_path, "update-ref", "--create-reflog", "-m", line, f"refs/exps/celery/{state}", stash)
    ended = subprocess.Popen(["true"])
    ended.wait()
    runs(tmp_path, base, "runs", RUNNING, os.getpid())
    runs(tmp_path, base, "in-a-copy", RUNNING)
    runs(tmp_path, base, "killed", RUNNING, ended.pid)
    runs(tmp_path, base, "cleaned", RUNNING, copy=False)
    runs(tmp_path, base, "a", RUNNING)
    runs(tmp_path, base, "b", FINISHED)
    runs(tmp_path, other, "elsewhere", RUNNING)
    found = find_experiments(tmp_path, "HEAD")
    assert found is not None
    assert [each.name for each in found.done] == ["a", "b"]
    assert found.failed == ["broke"]
    assert found.running == ["in-a-copy", "runs"]
    assert found.waiting == ["also-waits", "waits"]
    for name, says in (("runs", "running"), ("waits", "dvc queue start"), ("broke", "dvc queue logs broke")):
        with pytest.raises(PipelineError, match=f"{name} is .*{says}"):
            find_source(tmp_path, name)
