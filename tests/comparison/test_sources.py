"""The DVC experiments of a commit, read from git references as DVC writes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline.comparison.sources import find_experiments


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    done = subprocess.run(["git", *who, *arguments], cwd=root, text=True, capture_output=True, check=True)
    return done.stdout.strip()


def commit(root: Path) -> str:
    git(root, "commit", "-q", "--allow-empty", "-m", "x")
    return git(root, "rev-parse", "HEAD")


def test_the_experiments_of_a_commit_are_complete_failed_or_queued(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    other, base = commit(tmp_path), commit(tmp_path)
    assert find_experiments(tmp_path, "HEAD") is None
    assert find_experiments(tmp_path, "nothing") is None
    for baseline, name in ((base, "b"), (base, "a"), (other, "elsewhere")):
        git(tmp_path, "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}", base)
    for state, baseline, name in (
        ("failed", base, "broke"),
        ("stash", base, "waits"),
        ("stash", base, "also-waits"),
        ("stash", other, "elsewhere"),
    ):
        # Each new stash is another commit: a reference that does not move gets no line.
        stash = git(tmp_path, "commit-tree", f"{base}^{{tree}}", "-m", name)
        line = f"commit: dvc-exp:{base}:{baseline}:{name}"
        git(tmp_path, "update-ref", "--create-reflog", "-m", line, f"refs/exps/celery/{state}", stash)
    found = find_experiments(tmp_path, "HEAD")
    assert found is not None
    assert [each.name for each in found.done] == ["a", "b"]
    assert found.failed == ["broke"]
    assert found.waiting == ["also-waits", "waits"]
