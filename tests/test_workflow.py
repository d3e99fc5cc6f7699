"""The commands that docs/workflow.md and README.md show, run as they stand there."""

from __future__ import annotations

import copy
import re
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_docs import blocks
from test_dvc import STAGES, Clone
from test_notebook import execute, notebook, outputs

PAGE = REPOSITORY / "docs" / "workflow.md"
README = REPOSITORY / "README.md"

NOTHING_TO_DO = "Data and pipelines are up to date"

EXCEPTED = {
    "make repro": "sets up this very environment; its commands are `pipeline lock` and `dvc repro`",
    "make test": "is this very suite",
    "pipeline compare a1 ": "needs six runs, which tests/comparison/test_compare.py makes",
    "source ": "changes the shell that it is typed into",
    "python3 -m venv ": "the set-up under which the tests run",
    "pip install ": "the set-up under which the tests run",
}
"""The beginnings of the README's commands that no test runs, and why."""


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

    def __init__(self, clone: Clone) -> None:
        self.clone = clone

    def type(self, line: str) -> str:
        """Runs a line, which must succeed, until all that it queued is done too; returns what it printed."""
        if change := re.fullmatch(r"# in params\.yaml: ([\w.]+): (.+)", line):
            self.clone.set_params(f"{change[1]}={change[2]}")
            return ""
        if folder := re.fullmatch(r"cd (\S+)", line):
            self.clone.root = (self.clone.root / folder[1]).resolve(strict=True)
            return ""
        # The installed `pipeline` would run the code of this repository, not that of the clone.
        command = re.sub(r"(^|&& )pipeline ", r"\1python -m pipeline ", line)
        result = self.clone.run("bash", "-c", command, check=False)
        assert result.returncode == 0, f"{line}\n{result.stdout}"
        if "dvc queue start" in line:
            self._wait_for_the_queue()
        return result.stdout

    def _wait_for_the_queue(self, seconds: float = 600) -> None:
        until = time.monotonic() + seconds
        while re.search(r"\b(Queued|Running)\b", status := self.clone.run("dvc", "queue", "status").stdout):
            if time.monotonic() > until:
                self.clone.run("dvc", "queue", "stop", "--kill", check=False)
                pytest.fail(f"the queue is not done after {seconds:.0f} seconds:\n{status}")
            time.sleep(1)
        assert "Failed" not in status, status


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose first run is done and not committed; copy it before changing it."""
    clone = Clone(tmp_path_factory.mktemp("workflow") / "project")
    clone.set_params("train.optimizer.name=muon")  # as shipped: what the pages change is its rate
    clone.commit("the shipped optimizer")
    (loss,) = [code for code in blocks(README, "python") if "register_losses" in code]
    (clone.root / "plugins" / "losses" / "confident.py").write_text(loss)
    shutil.copy(README, clone.root)
    assert clone.repro() == STAGES
    return clone


@pytest.fixture
def shell(first_run: Clone, tmp_path: Path) -> Shell:
    clone = copy.copy(first_run)
    clone.root = tmp_path / "project"
    shutil.copytree(first_run.root, clone.root, symlinks=True)
    return Shell(clone)


def assert_val_loss_changed(table: str) -> None:
    """A table of metrics, whose last column is the change, has val.loss and a change of it."""
    rows = [line.split() for line in table.splitlines()]
    changes = [row[-1] for row in rows if row[1:2] == ["val.loss"]]
    assert changes, table
    assert all(float(change) != 0 for change in changes), table


def test_the_commands_of_the_workflow_page_run_in_order(shell: Shell) -> None:
    shell.clone.commit("first run")
    printed = [(line, shell.type(line)) for line in lines_of(PAGE)]

    def outputs(*parts: str) -> list[str]:
        """What the commands with these parts printed; the page has at least one."""
        found = [output for line, output in printed if all(part in line for part in parts)]
        assert found, f"docs/workflow.md has no {' … '.join(parts)}"
        return found

    for table in outputs("dvc metrics diff"):
        assert_val_loss_changed(table)

    (changed,) = [line.split() for line, _ in printed if line.startswith("# in params.yaml:")]
    for table in outputs("dvc params diff"):
        assert changed[3].removesuffix(":") in table

    (compared,) = outputs("pipeline compare")
    assert "val" in compared
    assert "train.optimizer.name" in compared
    outputs("dvc exp run", "--temp")
    outputs("dvc exp run", "--queue")
    (sweep,) = [line for line, _ in printed if "dvc exp run --queue" in line]
    rates = {float(rate) for rate in re.search(r"lr=([\d.e,-]+)", sweep)[1].split(",")}
    assert len(rates) == 3
    for table in outputs("dvc exp show"):
        experiments = "\n".join(row for row in table.splitlines() if re.search(r"[├└]──", row))
        numbers = re.findall(r"(?<!\S)\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\S)", experiments)
        assert rates <= {float(number) for number in numbers}, table

    outputs("dvc exp apply")
    outputs("dvc push")
    outputs("dvc pull")
    commands = [line for line, _ in printed]
    last_pull = max(number for number, line in enumerate(commands) if "dvc pull" in line)
    for line, output in printed[last_pull:]:
        if line.startswith("dvc repro"):
            assert NOTHING_TO_DO in output, output
    assert NOTHING_TO_DO in shell.type("dvc repro")


def test_the_notebook_runs_from_top_to_bottom(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a run that is done: its second one trains."""
    shell.clone.commit("first run")
    run = notebook(CHANGE="train.optimizer.muon.lr=0.01", PROMPT="the river")
    execute(run, shell.clone, monkeypatch, tmp_path)
    assert "bits_per_byte" in outputs(run, "metrics")
    assert "Training report" in outputs(run, "report")
    assert "the river" in outputs(run, "generate")
    compared = outputs(run, "change")
    assert "Running stage 'train'" in compared
    assert "train.optimizer.muon.lr" in compared
    with zipfile.ZipFile(shell.clone.root / "artifacts" / "export.zip") as archive:
        assert {"model.safetensors", "config.json"} <= set(archive.namelist())


@pytest.mark.long
def test_the_experiments_of_the_comparing_page_run_in_order(shell: Shell) -> None:
    shell.clone.commit("first run")
    printed = [(line, shell.type(line)) for line in lines_of(REPOSITORY / "docs" / "comparing.md")]
    for line, output in printed:
        print(f"$ {line}\n{output}")
    (table,) = [output for line, output in printed if line.startswith("dvc exp show")]
    assert len(re.findall(r"[├└]──", table)) == 7
    (compared,) = [output for line, output in printed if line.startswith("pipeline compare")]
    assert "Do these two recipes differ?" in compared
    assert "train.optimizer.muon.lr" in compared


@pytest.mark.long
def test_the_sweep_of_the_sweeps_page_is_answered_here_and_in_another_clone(shell: Shell) -> None:
    shell.clone.commit("first run")
    printed = [(line, shell.type(line)) for line in lines_of(REPOSITORY / "docs" / "sweeps.md")]
    compared = [output for line, output in printed if line.startswith("pipeline compare --by")]
    assert len(compared) == 3
    for output in compared:  # 3 rates, each with 3 seeds
        rows = re.findall(r"^[ |]+lr=\S+[ |]+3 ", output, flags=re.MULTILINE)
        assert len(rows) == 3, output
    # What the error of a cache without the reports names brings them.
    shutil.rmtree(shell.clone.root / ".dvc" / "cache")
    compare = ("python", "-m", "pipeline", "compare", "--by", "train.optimizer.muon.lr")
    refused = shell.clone.run(*compare, check=False)
    assert refused.returncode == 1
    assert "dvc exp pull REMOTE" in refused.stdout
    shell.type("dvc exp pull -q origin")
    assert shell.type(" ".join(compare)) == compared[1]


def parts(line: str) -> list[str]:
    """The commands of a line, whatever the experiments are called in it."""
    nameless = re.sub(r"(dvc exp run .*?) -n \S+", r"\1", line)
    return re.sub(r"(dvc exp apply) \S+", r"\1 NAME", nameless).split(" && ")


def test_every_command_of_the_readme_is_run_or_excepted(shell: Shell) -> None:
    """A line runs here, or each of its commands stands in docs/workflow.md, or it is excepted."""
    page = {command for line in lines_of(PAGE) for command in parts(line)}
    excepted = set()
    for line in lines_of(README):
        if prefixes := [prefix for prefix in EXCEPTED if line.startswith(prefix)]:
            excepted.update(prefixes)
        elif not page.issuperset(parts(line)):
            shell.type(line)
    assert excepted == set(EXCEPTED), "the README no longer has what is excepted"
