"""Start-up time: `--help`, commands that must not import torch, and `dvc repro` with nothing to do."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.context import Context
from benchmarks.measure import ROOT, Side
from benchmarks.results import Row

_LIGHT = ("--help", "tokenize --help", "split --help", "preset", "tokenize", "split")
"""Commands that must not import torch."""

_TEXT = "The river runs to a sea of light and stone. "


def run(context: Context) -> None:
    """Whole processes are measured."""
    _help(context)
    _imports(context)
    if shutil.which("git") and (ROOT / ".git").exists():
        _repro(context)
    else:
        context.skip("a repro with nothing to do", "this is no clone, or git is not on the PATH")


def _command(name: str, arguments: list[str], folder: Path = ROOT) -> Side:
    return Side(
        name, "benchmarks.measure:command", {"commands": [arguments], "folder": str(folder), "work": 1.0, "cpus": 1}
    )


def _help(context: Context) -> None:
    sides = [
        _command("`pipeline --help`", ["python", "-m", "pipeline", "--help"]),
        _command("bare Python", ["python", "-c", "pass"]),
        _command("Python and click", ["python", "-c", "import click"]),
    ]
    done = context.take_turns(sides)
    for side in sides:
        rounds = [each.processor for each in done[side.name].rounds]
        goal = "--help" if side is sides[0] else ""
        context.add(Row(f"processor time of {side.name}", "", median(rounds), "seconds",
                        wall=done[side.name].wall, rounds=rounds, goal=goal))  # fmt: skip


def _imports(context: Context) -> None:
    """The number of light commands that import torch."""
    from benchmarks.ours import TemporaryProject

    project = TemporaryProject(context.folder / "light")
    for number in range(40):
        (project.raw / f"{number}.txt").write_text(_TEXT * (number + 30), encoding="utf-8")
    settings = ["--set", "tokenize.corpus.name=files", "--set", "tokenize.tokenizer.name=bytes"]
    settings += ["--set", "split.by=position"]
    found = []
    for command in _LIGHT:
        line = [sys.executable, "-X", "importtime", "-m", "pipeline", *command.split()]
        done = subprocess.run(
            line + (settings if command in ("tokenize", "split") else []), cwd=project.folder,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr[-500:]}")
        if any(line.rpartition("|")[2].strip() == "torch" for line in done.stderr.splitlines()):
            found.append(command)
    note = f"torch is imported by: {', '.join(found)}" if found else ""
    context.add(Row(f"commands that import torch, of {', '.join(_LIGHT)}", "", float(len(found)), "count",
                    goal="no torch before it is needed", note=note))  # fmt: skip


def _repro(context: Context) -> None:
    """`dvc repro` with nothing to do, compared with DVC alone for as many stages and files."""
    project = context.folder / "repro"
    _copy(project)

    def do(*line: str) -> None:
        done = subprocess.run(line, cwd=project, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)}: {(done.stdout + done.stderr)[-1500:]}")

    do("git", "init", "-q")
    do("git", "add", "-A")
    do("git", "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost", "commit", "-qm", "all")
    # The outputs of the stages are dummy files: DVC only compares checksums.
    for out in ("tokens", "splits", "checkpoint", "export"):
        (project / "artifacts" / out).mkdir(parents=True)
        (project / "artifacts" / out / "made-up").write_text(out, encoding="utf-8")
    (project / "reports").mkdir(exist_ok=True)
    (project / "reports" / "evaluation.json").write_text("report", encoding="utf-8")  # which export depends on
    do(sys.executable, "-m", "dvc", "commit", "-f", "-q")

    trivial = context.folder / "trivial"
    trivial.mkdir()
    (trivial / "dvc.yaml").write_text("stages:\n  one:\n    cmd: echo\n    deps: [text]\n    outs: [out]\n")
    for name in ("text", "out"):
        (trivial / name).write_text(name, encoding="utf-8")
    dvc = ["python", "-m", "dvc"]
    here = [sys.executable, *dvc[1:]]
    for line in (["git", "init", "-q"], [*here, "init", "-q"], [*here, "commit", "-f", "-q"]):
        subprocess.run(line, cwd=trivial, capture_output=True, check=True)

    empty = context.folder / "empty"
    shutil.copytree(project, empty, symlinks=True)
    stages = (empty / "dvc.yaml").read_text(encoding="utf-8")
    (empty / "dvc.yaml").write_text(re.sub(r"cmd: python .*", "cmd: echo", stages), encoding="utf-8")
    subprocess.run([*here, "commit", "-f", "-q"], cwd=empty, capture_output=True, check=True)

    sides = [
        _command("ours", [*dvc, "repro", "-q"], project),
        _command("the same stages with empty commands", [*dvc, "repro", "-q"], empty),
        _command("a project of one empty stage", [*dvc, "repro", "-q"], trivial),
    ]
    goals = {sides[1].name: "a repro with nothing to do"}
    context.compare("`dvc repro` with nothing to do", sides, "repros per processor-second", goals)


def _copy(project: Path) -> None:
    """The files of this project that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
