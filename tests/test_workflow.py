"""The commands that the documents show, run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from ruamel.yaml import YAML
from test_docs import PAGES, blocks
from test_dvc import Clone
from test_notebook import execute, notebook, shown_by

from pipeline.cli import cli
from pipeline.command_line.process import exit_code

IN_ORDER = [REPOSITORY / "docs" / f"{name}.md" for name in ("comparing", "reliability", "team")]
"""The guides whose commands build on each other. A command that they contain is not run again for another page."""

NOTHING_TO_DO = "Data and pipelines are up to date"

EXCEPTED = {
    "make repro": "sets up this very environment; its commands are `pipeline lock` and `dvc repro`",
    "make install": "the set-up under which the tests run",
    "make test": "is this very suite",
    "docker ": "needs a Docker daemon; tests/test_container.py checks the Dockerfile",
    "make bench": "takes 40 minutes; tests/test_benchmarks.py runs parts of it",
    "python -m benchmarks": "takes 40 minutes; tests/test_benchmarks.py runs parts of it",
    "source ": "changes the shell that it is typed into",
    "python3 -m venv ": "the set-up under which the tests run",
    ".venv/bin/pip install ": "the set-up under which the tests run",
    "pip install ": "the set-up under which the tests run",
    "mkdir -p data/raw && cp -r /path/to/": "a person's own files; this test's project has such texts",
    "pipeline fit --minutes 10": "writes params for ten minutes of training; tests/commands/test_fit.py",
    "dask ": "runs until it is stopped; tests/tokenize/test_cluster.py starts both",
    "pipeline tokenize --set runtime.dask=": "needs a cluster; tests/tokenize/test_cluster.py",
    "git add data/remote.jsonl": "needs texts below a URL; tests/plugins/test_remote.py",
    "mkdir -p data/raw data/weights/base": "tests/train/test_init_from.py trains from such a folder",
    "cp /path/to/your/conversations": "a person's own files; tests/commands/test_chat.py trains on such",
    "pipeline preset chat-tiny": "needs the default run; tests/commands/test_base_weights.py",
    "pipeline chat --temperature 0": "needs a model trained on conversations; tests/commands/test_chat.py",
    "pipeline chat --system": "needs a model trained on conversations; tests/commands/test_chat.py",
    "pipeline generate --chat": "needs a model trained on conversations; tests/commands/test_chat.py",
    "pipeline score --chat": "needs a model trained on conversations; tests/commands/test_chat.py",
    "mkdir -p data/weights/gpt2": "tests/train/test_init_from.py trains from such a folder",
    "dvc add data/weights/gpt2": "tests/train/test_init_from.py trains from such a folder",
    "ln -s /big/disk/texts": "tests/test_dvc.py has texts behind a link",
    "dvc config core.no_scm true": "takes git away from the commands that follow",
    "llama-cli ": "another program; tests/plugins/test_gguf_in_llama_cpp.py reads the file with its library",
    "printf 'FROM ./artifacts": "another program",
    "torchrun ": "tests/test_fault_ranks.py starts torchrun",
    "kubectl ": "needs a cluster",
    "git archive HEAD | kubectl": "needs a cluster",
    "tar -c artifacts/splits | kubectl": "needs a cluster",
    "export NCCL_": "changes the shell that it is typed into",
    "export GLOO_": "changes the shell that it is typed into",
    "sbatch ": "needs Slurm, whose variables tests/train/test_distributed.py sets",
    "dvc commit -f train": "follows sbatch",
}
"""The beginnings of commands that no test here runs, and why."""

FURTHER = {
    "dvc exp run --temp -n adamw": "team.md has such an experiment, and compares it",
    "dvc metrics diff HEAD adamw": "the experiment above",
    "pipeline compare HEAD adamw": "the experiment above",
    "dvc exp remove adamw": "the experiment above",
    "dvc exp run --temp -S train.loss.name=steep": "test_docs.py trains with this loss",
    'git commit --allow-empty -m "Start of the ideas"': "separates the commands below from the sweep before them",
    "dvc exp run --queue -S train.seed=1,2 evaluate": "another sweep",
    "dvc exp run --queue -S train.optimizer.name=adamw": "another sweep",
    "dvc exp run --queue -S train.loss.name=focal": "another sweep",
    "dvc exp run --queue -S train.schedule.name=wsd": "another sweep",
    "dvc queue start --jobs 1": "another sweep",
    "pipeline compare --by train.optimizer.name": "another sweep",
}
"""The beginnings of commands that run with --long only: further cases of what runs anyway."""


def lines_of(path: Path) -> list[str]:
    """The lines of a document's sh blocks: without comments, except those that say what to change by hand."""
    lines = []
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            command = line if line.startswith("# in params.yaml:") else re.sub(r"(^|\s+)#.*$", "", line)
            if command.strip():
                lines.append(" ".join(command.split()))
    return lines


class Shell:
    """Types commands into a clone."""

    def __init__(self, clone: Clone, capture: pytest.CaptureFixture[str]) -> None:
        self.clone, self._capture = clone, capture

    def type(self, line: str) -> str:
        """Runs a line, which must succeed, until all that it queued is done too; returns what it printed."""
        if change := re.fullmatch(r"# in params\.yaml: ([\w.]+): (.+)", line):
            self.clone.set_params(f"{change[1]}={change[2]}")
            return ""
        if folder := re.fullmatch(r"cd (\S+)", line):
            self.clone.root = (self.clone.root / folder[1]).resolve(strict=True)
            return ""
        if " && " in line:
            return "".join(self.type(each) for each in line.split(" && "))
        if line.startswith("pipeline ") and not re.search(r"[|><$]", line):
            return self._call(line)
        if line == "dvc exp apply NAME":
            line = line.replace("NAME", self.clone.run("dvc", "exp", "list", "--name-only").stdout.split()[-1])
        # The installed `pipeline` would run the code of this repository, not that of the clone.
        command = re.sub(r"(^|\| )pipeline ", r"\1python -m pipeline ", line)
        result = self.clone.run("bash", "-c", command, check=False)
        assert result.returncode == 0, f"{line}\n{result.stdout}"
        if "dvc queue start" in line:
            self._wait_for_the_queue()
        return result.stdout

    def _call(self, line: str) -> str:
        """Runs a `pipeline` command in this process, which saves the import of torch."""
        self._capture.readouterr()
        with pytest.MonkeyPatch.context() as patch, open(os.devnull) as nothing:
            patch.chdir(self.clone.root)
            patch.setattr(sys, "stdin", nothing)
            code = exit_code(cli, shlex.split(line)[1:])
        printed = "".join(self._capture.readouterr())
        assert code == 0, f"{line}\n{printed}"
        return printed

    def _wait_for_the_queue(self, seconds: float = 600) -> None:
        until = time.monotonic() + seconds
        while re.search(r"\b(Queued|Running)\b", status := self.clone.run("dvc", "queue", "status").stdout):
            if time.monotonic() > until:
                self.clone.run("dvc", "queue", "stop", "--kill", check=False)
                pytest.fail(f"the queue is not done after {seconds:.0f} seconds:\n{status}")
            time.sleep(2)
        assert "Failed" not in status, status


@pytest.fixture
def shell(first_run: Clone, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Shell:
    clone = first_run.copy(tmp_path / "project")
    clone.git("remote", "add", "origin", str(first_run.root))  # as in any clone of a project
    return Shell(clone, capfd)


def parts(line: str) -> list[str]:
    """The commands of a line, whatever the experiments are called in it."""
    return re.sub(r"(dvc exp run .*?) -n \S+", r"\1", line).split(" && ")


def test_every_command_of_the_documents_runs_or_is_excepted(shell: Shell, request: pytest.FixtureRequest) -> None:
    root, long = shell.clone.root, request.config.option.long
    for page in IN_ORDER:
        printed = []
        for line in lines_of(page):
            if line.startswith(tuple(EXCEPTED)) or (not long and line.startswith(tuple(FURTHER))):
                continue
            # Another seed is a further case of the same command.
            few = line if long else line.replace("train.seed=1,2,3", "train.seed=1")
            # Not the seed of the commit: one of these runs is applied and committed.
            few = few.replace("train.seed=1,2 ", "train.seed=2 ")
            printed.append((line, shell.type(few)))
        CHECKS[page.name](printed, root.parent)
    shell.clone.root = root
    ran = {command for page in IN_ORDER for line in lines_of(page) for command in parts(line)}
    used = set()
    for page in PAGES:
        for line in lines_of(page):
            if excepted := {beginning for beginning in EXCEPTED if line.startswith(beginning)}:
                used |= excepted
            elif not long and line.startswith(tuple(FURTHER)):
                continue
            elif not ran.issuperset(parts(line)):
                shell.type(line)
                ran.update(parts(line))
    assert used == set(EXCEPTED), "no document has what is excepted"


Printed = list[tuple[str, str]]
"""The lines of a page, each with what it printed."""


def outputs(printed: Printed, *parts: str) -> list[str]:
    """What the lines with these parts printed; the page has at least one."""
    found = [output for line, output in printed if all(part in line for part in parts)]
    assert found, f"the page has no {' … '.join(parts)}"
    return found


def check_comparing(printed: Printed, folder: Path) -> None:
    for table in outputs(printed, "dvc metrics diff"):
        rows = [line.split() for line in table.splitlines()]
        changes = [row[-1] for row in rows if row[1:2] == ["val.loss"]]
        assert changes, table
        assert all(float(change) != 0 for change in changes), table
    (table,) = outputs(printed, "dvc params diff")
    assert "evaluate.stride" in table
    (restored,) = outputs(printed, "git checkout params.yaml && dvc repro")
    assert "Running stage" not in restored
    for line, compared in printed:
        if line == "pipeline compare HEAD adamw":  # with --long
            assert "val" in compared
            assert "train.optimizer.name" in compared
    (ranked,) = outputs(printed, "pipeline compare --by train.optimizer.muon.lr")
    assert "lr=0.01" in ranked
    (shown,) = outputs(printed, "dvc exp show")
    assert "0.01" in shown


def check_reliability(printed: Printed, folder: Path) -> None:
    assert "artifacts/checkpoint" in outputs(printed, "dvc checkout --force")[0]
    for status in outputs(printed, "dvc status"):
        assert NOTHING_TO_DO in status
    assert (folder / "project" / "artifacts" / "checkpoint").is_dir()


def check_team(printed: Printed, folder: Path) -> None:
    repro, *_ = outputs(printed, "dvc repro")
    assert NOTHING_TO_DO in repro
    (compared,) = outputs(printed, "pipeline compare HEAD seed2")
    assert "train.seed" in compared
    # The outputs of the experiment are in the remote, where the page says that it is.
    hub = Clone.at(folder / "hub.git")
    lock = YAML(typ="safe").load(hub.git("show", "try-seed2~1:dvc.lock"))["stages"]
    (checkpoint,) = [out["md5"] for out in lock["train"]["outs"] if out["path"] == "artifacts/checkpoint"]
    assert (folder / "store" / "files" / "md5" / checkpoint[:2] / checkpoint[2:]).is_file()
    # Continuous integration ran what the experiment had left out, and nothing else.
    (ran,) = outputs(printed, "dvc repro --pull")
    assert re.findall(r"Running stage '(\w+)'", ran) == ["export"]
    assert "dvc.lock" in hub.git("show", "--name-only", "--format=%s", "try-seed2")
    assert "| val" in (folder / "ci" / "comparison.md").read_text()
    for status in outputs(printed, "dvc status -c"):
        assert "in sync" in status


CHECKS = {"comparing.md": check_comparing, "reliability.md": check_reliability, "team.md": check_team}


def test_the_notebook_runs_from_top_to_bottom(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a run that is done: its second one trains."""
    shell.clone.commit("first run")
    run = notebook(CHANGE="train.optimizer.muon.lr=0.01", PROMPT="the river")
    execute(run, shell.clone, monkeypatch, tmp_path)
    assert "bits_per_byte" in shown_by(run, "metrics")
    assert "Training report" in shown_by(run, "report")
    assert "the river" in shown_by(run, "generate")
    compared = shown_by(run, "change")
    assert "Running stage 'train'" in compared
    assert "train.optimizer.muon.lr" in compared
    assert (shell.clone.root / "artifacts" / "export.zip").is_file()
