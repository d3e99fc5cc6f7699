"""`pipeline compare`: folders, revisions and experiments; which runs are comparable, and the output."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Project
from made_runs import PARAMS, scored, write_run

SIDES = ("val", "test")


def recipe(seed: int, **changes: Any) -> dict[str, Any]:
    return {**PARAMS, "train": {**PARAMS["train"], "seed": seed, **changes}}


def sides(**changes: dict[str, str]) -> dict[str, dict[str, str]]:
    return {side: {"tokens": f"{side} tokens", "text": f"{side} text"} | changes for side in SIDES}


def better_by(out: str) -> list[float]:
    """The improvement of B on each held-out text, from the output."""
    return [float(each) for each in re.findall(r"B is better by (\d\.\d+) ± \d\.\d+ nats per token", out)]


@pytest.fixture
def folders(project: Project) -> Project:
    """Runs in folders: a, one that is better, and seeds of two recipes."""
    write_run(project.root / "a", scored(1))
    write_run(project.root / "b", scored(2, shift=-0.1), recipe(1, lr=0.03))
    write_run(project.root / "again", scored(12), recipe(1))  # the same run on another machine: other last bits
    write_run(project.root / "last", scored(13), recipe(4), weights="last")
    for seed in (1, 2, 3):
        write_run(project.root / f"one{seed}", scored(10 + seed), recipe(seed))
        write_run(project.root / f"two{seed}", scored(20 + seed, shift=-0.1), recipe(seed, lr=0.03))
    return project


def test_two_folders_are_compared_in_words(folders: Project) -> None:
    out = folders.succeed("compare", "a", "b").out
    assert "Do these two checkpoints differ" in out
    assert better_by(out) == pytest.approx([0.1, 0.1], abs=0.03)
    assert "train.lr  0.02  0.03" in out
    assert "threads" not in out
    assert "another seed gives another checkpoint" in out
    assert "A is better by" in folders.succeed("compare", "b", "a").out


def test_recipes_are_compared_over_their_seeds(folders: Project) -> None:
    out = folders.succeed("compare", "one1", "one2", "one3", "--against", "two1", "two2", "two3").out
    assert "Do these two recipes differ" in out
    assert better_by(out) == pytest.approx([0.1, 0.1], abs=0.03)
    assert "the seeds and of the text" in out
    assert "train.seed" not in out
    same = folders.succeed("compare", "one1", "one2", "--against", "one3", "a").out
    assert same.count("no significant difference") == 2
    assert "All params are equal" in same


def test_json_and_markdown_say_the_same(folders: Project) -> None:
    found = json.loads(folders.succeed("compare", "a", "b", "--json").out)
    assert found["question"] == "checkpoints"
    assert found["unit"] == "nats per token"
    val = found["val"]
    assert val["low"] < val["difference"] == val["second"] - val["first"] < val["high"] < 0
    assert val["differ"] is True
    assert val["p_value"] < 0.001
    assert (val["what"], val["units"]) == ("documents", 40)
    assert found["params"] == {"train.lr": {"A": 0.02, "B": 0.03}}
    assert found["changed_most"]["val"][0]["name"].startswith("document ")
    page = folders.succeed("compare", "a", "b", "--markdown").out
    assert val["verdict"] in page
    assert "| train.lr | 0.02 | 0.03 |" in page
    several = folders.succeed("compare", "one1", "one2", "--against", "two1", "two2", "--json").out
    assert json.loads(several)["question"] == "recipes"
    assert "--against" in folders.succeed("compare", "one1", "one2", "--markdown").out


def test_the_chosen_metrics_are_shown(folders: Project) -> None:
    for name, value in (("one1", 0.25), ("one2", 0.75), ("two1", 0.125), ("two2", 0.125)):
        path = folders.root / name / "metrics" / "evaluate.json"
        numbers = json.loads(path.read_text())
        numbers["val"] |= {"mine": value, "perplexity": 3.0, "tokens": 7}
        path.write_text(json.dumps(numbers))
    out = folders.succeed("compare", "one1", "two1").out
    assert re.search(r"^  val mine +0.2500 +0.1250 +-0.1250$", out, flags=re.MULTILINE)
    assert "perplexity" not in out
    several = ("compare", "one1", "one2", "--against", "two1", "two2", "--json")
    assert json.loads(folders.succeed(*several).out)["metrics"] == {"val mine": {"A": 0.5, "B": 0.125}}
    assert "val mine" not in folders.succeed("compare", "one1", "two3").out


def test_other_tokens_of_the_same_text_are_compared_in_bits_a_byte(folders: Project) -> None:
    other = {"name": "bytes", "fingerprint": "g"}
    write_run(folders.root / "c", scored(2, shift=-0.1, size=2), tokenizer=other, sides=sides(tokens="others"))
    found = json.loads(folders.succeed("compare", "a", "c", "--json").out)
    assert found["unit"] == "bits a byte"
    assert found["val"]["second"] == pytest.approx(2 * found["val"]["first"], rel=0.05)


def test_fewer_than_thirty_documents_are_compared_by_block(folders: Project) -> None:
    for name, seed, blocks in (("few", 1, 16), ("fewer", 2, 8)):
        few = scored(seed, units=29)
        write_run(folders.root / name, few._replace(blocks=few.blocks[:blocks]))
    found = json.loads(folders.succeed("compare", "few", "fewer", "--json").out)
    assert (found["val"]["what"], found["val"]["units"]) == ("blocks", 8)


def test_without_a_test_split_val_is_compared(folders: Project) -> None:
    only = {"val": sides()["val"]}
    write_run(folders.root / "c", scored(2), sides=only)
    found = json.loads(folders.succeed("compare", "a", "c", "--json").out)
    assert "val" in found
    assert "test" not in found


def test_scores_that_do_not_change_with_the_params_are_said(folders: Project) -> None:
    write_run(folders.root / "c", scored(1), recipe(1, lr=0.5))
    out = folders.succeed("compare", "a", "c").out
    assert out.count("A and B are the same") == 2
    assert "`dvc repro` was not run" in out


def damage(name: str, text: str | None) -> Any:
    def change(root: Path) -> None:
        path = root / "b" / name
        path.unlink()
        if text is not None:
            path.write_text(text)

    return change


def again(**about: Any) -> Any:
    return lambda root: write_run(root / "b", scored(2), **about)


COLUMNS = "tokens\tnats\tbytes\ttext_nats\tcorrect"
BAD = {
    "other windows": (again(packed=True), ("train.pack_documents",)),
    "another stride": (again(stride_share=0.5), ("evaluate.stride", "1.0", "0.5")),
    "another text": (again(sides=sides(text="other")), ("different val texts",)),
    "no text in common": (again(sides={}), ("no held-out text in common",)),
    "no reports": (lambda root: shutil.rmtree(root / "b" / "reports"), ("b: reports/evaluation.json", "dvc repro")),
    "no metrics": (damage("metrics/evaluate.json", None), ("b: metrics/evaluate.json is missing", "dvc repro")),
    "no params": (again(params={}), ("b: reports/evaluation.json", "params", "dvc repro")),
    "other metrics": (
        damage("metrics/evaluate.json", '{"val": {"loss": 1.0}, "test": {"loss": 1.0}}'),
        ("different evaluations", "dvc repro"),
    ),
    "metrics that are a list": (damage("metrics/evaluate.json", "[]"), ("metrics/evaluate.json is damaged",)),
    "a number of 5,000 digits": (damage("metrics/evaluate.json", "9" * 5000), ("evaluate.json is damaged",)),
    "brackets without an end": (damage("reports/evaluation.json", "[" * 99999), ("evaluation.json is damaged",)),
    "a loss that is text": (damage("metrics/evaluate.json", '{"val": {"loss": "x"}}'), ("different evaluations",)),
    "a side that is a number": (damage("metrics/evaluate.json", '{"val": 3}'), ("different evaluations",)),
    "bytes": (damage("metrics/evaluate.json", "\x00\x01"), ("evaluate.json is damaged",)),
    "broken metrics": (damage("metrics/evaluate.json", "{"), ("metrics/evaluate.json is damaged",)),
    "params that are none": (again(params={"train": 1}), ("b: reports/evaluation.json", "params", "dvc repro")),
    "a table of something else": (damage("reports/documents.tsv", "a\tb\n"), ("documents.tsv is damaged",)),
    "an empty table": (damage("reports/documents.tsv", ""), ("documents.tsv is damaged",)),
    "a cut table": (damage("reports/blocks.tsv", "side\tblock\ttokens\nval\t1"), ("blocks.tsv is damaged",)),
    "a number that is none": (
        damage("reports/documents.tsv", f"side\tdocument\t{COLUMNS}\nval\ta\tx\t1\t1\t1\t1\n"),
        ("documents.tsv is damaged",),
    ),
    "facts that are none": (damage("reports/evaluation.json", "[]"), ("evaluation.json is damaged",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_may_not_be_compared_is_refused_in_one_line(folders: Project, case: str) -> None:
    change, says = BAD[case]
    change(folders.root)
    result = folders.run("compare", "a", "b")
    assert result.code == 1
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert all(part in result.err for part in says), result.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("a", "nowhere"), 1, ("'nowhere'",)),
        (("a", "b", "one1"), 2, ("3 runs", "--against", "--by")),
        (("--against", "b"), 2, ("before --against",)),
        (("a", "--against"), 2, ("--against", "requires an argument")),
        (("a", "--against", "two1", "two2"), 1, ("recipe A", "seed")),
        (("one1", "one2", "--against", "b"), 1, ("recipe B",)),
        (("one1", "two2", "--against", "one1", "one2"), 1, ("one recipe", "train.lr is 0.02 and 0.03")),
        (("one1", "one1", "--against", "two1", "two2"), 1, ("the same model", "train.seed")),
        (("one1", "again", "--against", "two1", "two2"), 1, ("the same model", "train.seed")),
        (
            ("one1", "last", "--against", "two1", "two2"),
            1,
            ("one recipe", "evaluate.weights is 'best' and 'last'"),
        ),
    ],
)
def test_wrong_names_are_one_line(folders: Project, arguments: tuple[str, ...], code: int, says: Any) -> None:
    result = folders.run("compare", *arguments)
    assert result.code == code
    assert len(result.err.splitlines()) == 1
    assert all(part in result.err for part in says), result.err


# ── git and DVC ───────────────────────────────────────────────────────────────────────────────────


def git(root: Path, *arguments: str) -> str:
    who = {f"GIT_{role}_{what}": "t@t" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    return subprocess.run(
        ["git", *arguments], cwd=root, env=environment | who, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(root: Path, cache: Path) -> str:
    """Commits the project in `root` as DVC would: its reports into the cache, their md5 into dvc.lock."""

    def store_in_cache(content: bytes, suffix: str = "") -> str:
        digest = hashlib.md5(content).hexdigest() + suffix
        path = cache / "files" / "md5" / digest[:2] / digest[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return digest

    listing = [
        {"md5": store_in_cache(path.read_bytes()), "relpath": path.name} for path in (root / "reports").iterdir()
    ]
    outs = [
        {"path": "metrics/evaluate.json"},
        {"path": "reports", "md5": store_in_cache(json.dumps(listing).encode(), ".dir")},
    ]
    (root / "dvc.lock").write_text(json.dumps({"stages": {"evaluate": {"outs": outs}}}))
    (root / ".gitignore").write_text("/reports/\n.dvc/\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "a run")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def history(project: Project) -> Project:
    """A repository with a commit, an experiment on it, and a working tree that was run again."""
    root = project.root
    git(root, "init", "-q")
    write_run(root, scored(2, shift=-0.1), recipe(1, lr=0.03))
    experiment = commit(root, root / ".dvc" / "cache")
    git(root, "update-ref", f"refs/exps/{experiment[:2]}/{experiment[2:]}/wide", experiment)
    git(root, "update-ref", "refs/exps/exec/EXEC_BASELINE", experiment)
    write_run(root, scored(1))
    commit(root, root / ".dvc" / "cache")
    write_run(root, scored(3, shift=-0.2), recipe(1, lr=0.04))
    return project


def test_the_last_commit_is_compared_with_the_working_tree(history: Project) -> None:
    out = history.succeed("compare").out
    assert "A  HEAD: the best weights" in out
    assert "B  working tree: the best weights" in out
    assert better_by(out) == pytest.approx([0.2, 0.2], abs=0.03)
    assert "train.lr  0.02  0.04" in out
    assert better_by(history.succeed("compare", "HEAD~1").out) == pytest.approx([0.1, 0.1], abs=0.03)


def test_an_experiment_is_found_by_its_name(history: Project) -> None:
    out = history.succeed("compare", "HEAD", "wide").out
    assert better_by(out) == pytest.approx([0.1, 0.1], abs=0.03)
    assert "train.lr  0.02  0.03" in out
    result = history.run("compare", "HEAD", "wider")
    assert "(experiments: wide)" in result.err
    other = git(history.root, "rev-parse", "HEAD")
    git(history.root, "update-ref", f"refs/exps/{other[:2]}/{other[2:]}/wide", other)
    assert "several experiments" in history.run("compare", "HEAD", "wide").err


def test_reports_that_are_not_in_the_cache_are_one_line(history: Project) -> None:
    shutil.rmtree(history.root / ".dvc")
    result = history.run("compare")
    assert result.code == 1
    assert "not in DVC's cache" in result.err
    assert f"git branch -f compared {git(history.root, 'rev-parse', 'HEAD')[:10]} && dvc fetch" in result.err
    assert "--all-branches reports" in result.err
    assert len(result.err.splitlines()) == 1


def test_without_results_or_a_project_that_is_said(history: Project) -> None:
    for name in ("metrics", "reports"):
        shutil.rmtree(history.root / name)
    result = history.run("compare")
    assert all(part in result.err for part in ("the working tree has no results", "dvc repro"))
    (history.root / "params.yaml").unlink()
    assert "run this in the project's folder" in history.run("compare").err


def test_what_may_be_on_the_git_remote_is_named_with_the_way_to_it(history: Project, tmp_path: Path) -> None:
    assert "pull" not in history.run("compare", "HEAD", "seed2").err
    git(history.root, "remote", "add", "hub", str(tmp_path))
    result = history.run("compare", "HEAD", "seed2")
    assert "`dvc exp pull hub seed2`" in result.err
    assert "shallow" not in result.err
    (history.root / ".git" / "shallow").write_text(f"{git(history.root, 'rev-parse', 'HEAD')}\n")
    result = history.run("compare", "HEAD", "hub/main")
    assert "git fetch --unshallow hub '+refs/heads/*:refs/remotes/hub/*'" in result.err
    assert len(result.err.splitlines()) == 1


def test_a_commit_before_there_were_tables_is_one_line(history: Project) -> None:
    for path in (history.root / "reports").glob("*.tsv"):
        path.unlink()
    commit(history.root, history.root / ".dvc" / "cache")
    assert "documents.tsv: run `dvc repro`" in history.run("compare", "HEAD", "HEAD~1").err
    git(history.root, "rm", "-q", "--cached", "dvc.lock")
    git(history.root, "commit", "-qm", "without")
    assert "dvc.lock" in history.run("compare", "HEAD", "HEAD~1").err


def test_a_cache_elsewhere_is_asked_of_dvc(history: Project, tmp_path: Path) -> None:
    (history.root / ".dvc" / "cache").rename(tmp_path / "cache")
    (history.root / ".dvc" / "config").write_text(f"[cache]\n    dir = {tmp_path / 'cache'}\n")
    assert better_by(history.succeed("compare").out) == pytest.approx([0.2, 0.2], abs=0.03)


def test_comparing_imports_no_torch_and_no_dvc(folders: Project) -> None:
    script = (
        "import sys; from pipeline.cli import cli; from pipeline.command_line.process import exit_code;"
        "assert exit_code(cli, ['compare', 'a', 'b']) == 0;"
        "print([name for name in ('torch', 'dvc') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folders.root, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
