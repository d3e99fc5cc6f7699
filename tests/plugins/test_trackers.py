"""What the trackers write, read by their own readers: every number once, whatever befalls the run."""

from __future__ import annotations

import builtins
import csv
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Project
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_eval_callbacks import Training, callback

TRACKERS = ("tensorboard", "dvclive", "wandb", "mlflow")
FOLDERS = {name: f".{name}" for name in TRACKERS}
each_tracker = pytest.mark.parametrize("name", TRACKERS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is written goes to a fresh folder, and the environment is afterwards as it was."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    finish_wandb()
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def finish_wandb() -> None:
    """Has wandb write everything that it holds."""
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].run.finish()


# ── what is read back ─────────────────────────────────────────────────────────────────────────────


def points(name: str, run: Path, number: str = "val/loss") -> list[tuple[int, float]]:
    """What the tracker's own reader, or its file, says of a number: steps and values."""
    if name == "tensorboard":
        return [(point.step, point.value) for point in EventAccumulator(str(run)).Reload().Scalars(number)]
    if name == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(run.parents[1].as_uri())
        return [(point.step, point.value) for point in client.get_metric_history(run.name, number)]
    if name == "wandb":
        rows = [row for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")) for row in wandb_rows(file)]
        return [(row["_step"], row[number]) for row in rows if number in row]
    with (run / "plots" / "metrics" / f"{number}.tsv").open() as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [(int(row["step"]), float(row[number.rpartition("/")[2]])) for row in rows]


def wandb_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run in wandb's file, which is whole a moment after the run was finished."""
    for _ in range(200):
        records = list(wandb_records(file.read_bytes()))
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.05)
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def wandb_records(data: bytes) -> Iterator[Any]:
    """The records of wandb's file, whose form is that of LevelDB's log: blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, whole = 7, b""  # behind wandb's own header
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the record's end
            yield Record.FromString(whole)
            whole = b""


def runs(name: str) -> list[Path]:
    finish_wandb()
    if name == "mlflow":
        return [path.parent for path in sorted(Path(FOLDERS[name]).resolve().glob("[0-9]*/*/metrics"))]
    return sorted(Path(FOLDERS[name]).iterdir())


def current(name: str, training: Training) -> Path:
    """The run that a training writes into."""
    return next(run for run in runs(name) if run.name == training.memory["run"])


WRITTEN_LAST = {
    "tensorboard": "events.out.tfevents.train",
    "dvclive": "metrics.json",
    "mlflow": "metrics/val/loss",
}
"""What may be torn when the run is killed; wandb writes in a process of its own, which outlives it."""


@each_tracker
def test_every_number_is_read_back_at_its_step(name: str) -> None:
    training = Training()
    for step in (0, 10, 20):
        training.evaluate(callback(name), step, **({"grad_norm": 0.5 + step} if step else {}))
    (run,) = runs(name)
    assert points(name, run) == [(0, 4.0), (10, pytest.approx(3.9)), (20, pytest.approx(3.8))]
    assert points(name, run, "grad_norm") == [(10, 10.5), (20, 20.5)]


@pytest.mark.parametrize(
    ("name", "torn"), [*((name, False) for name in TRACKERS), *((name, True) for name in WRITTEN_LAST)]
)
def test_what_a_killed_run_wrote_after_its_last_state_is_not_there_twice(name: str, torn: bool) -> None:
    training = Training()
    training.evaluate(callback(name), 0)
    training.evaluate(callback(name), 10)
    saved = training.saved()
    training.evaluate(callback(name), 20)
    training.evaluate(callback(name), 30)
    (run,) = runs(name)
    if torn:  # in the middle of a write
        last = run / WRITTEN_LAST[name]
        last.write_bytes(last.read_bytes()[:-9])
    training.restored(saved)
    for step in (20, 30, 40):
        training.evaluate(callback(name), step)
    found = current(name, training)
    assert (found == run) != (torn and name == "mlflow")  # which begins another run
    assert [step for step, _ in points(name, found)] == [0, 10, 20, 30, 40]


@each_tracker
def test_a_folder_that_was_removed_is_begun_again(name: str) -> None:
    training = Training()
    training.evaluate(callback(name), 0)
    training.evaluate(callback(name), 10)
    (run,) = runs(name)
    shutil.rmtree(run)
    training.evaluate(callback(name), 20)
    training.evaluate(callback(name), 30)
    assert [step for step, _ in points(name, current(name, training))][-2:] == [20, 30]


@each_tracker
@pytest.mark.parametrize("experiment", ["", "spiky-ends"])
def test_two_runs_have_two_folders(name: str, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", experiment)
    for _ in range(2):
        Training().evaluate(callback(name), 0)
    assert [len(points(name, run)) for run in runs(name)] == [1, 1]
    if experiment and name != "mlflow":  # which names folders itself
        assert [run.name for run in runs(name)] == [experiment, f"{experiment}-2"]


@each_tracker
def test_an_experiment_in_a_copy_writes_into_the_main_project(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / "copy").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    monkeypatch.chdir(tmp_path / "copy")
    Training().evaluate(callback(name), 0)
    assert list((tmp_path / "copy").iterdir()) == []
    assert (tmp_path / "main" / FOLDERS[name]).is_dir()


@each_tracker
def test_a_missing_package_is_told_in_one_line_with_the_command(
    name: str, trained_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def absent(module: str, given: Any = None, local: Any = None, names: Any = (), level: int = 0) -> Any:
        if level == 0 and module.split(".")[0] == name:  # the plugin's own file of this name is there
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(module, given, local, names, level)

    monkeypatch.setattr(builtins, "__import__", absent)
    result = trained_project.run("train", "--set", f"train.eval_callbacks.use=[{name}]")
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert f"pip install -c constraints.txt -e '.[{name}]'" in result.err
    assert not Path(FOLDERS[name]).exists()


INTERRUPT = '''
import os, signal
from pathlib import Path
from typing import ClassVar
from pipeline.plugin import EvalCallback, hookimpl

class Interrupt(EvalCallback):
    """Ctrl-C at step 3, once."""

    name: ClassVar[str] = "interrupt"

    def on_evaluation(self, event):
        if event.step == 3 and not Path("interrupted").exists():
            Path("interrupted").touch()
            os.kill(os.getpid(), signal.SIGINT)
        return {}

@hookimpl
def register_eval_callbacks():
    return [Interrupt]
'''


OTHERS = "temperature_scaling,sample_text,weight_norms,interrupt"


def test_logging_changes_no_result_and_an_interrupted_run_goes_on_in_its_curves(trained_project: Project) -> None:
    metrics = trained_project.root / "metrics"
    without = json.loads((metrics / "train.json").read_text())
    (trained_project.root / "plugins" / "eval_callbacks" / "interrupt.py").write_text(INTERRUPT)
    using = ("--set", f"train.eval_callbacks.use=[{OTHERS},{','.join(TRACKERS)}]")
    assert trained_project.run("train", *using).code == 130
    assert "resuming from step 3" in trained_project.succeed("train", *using).out
    trained = json.loads((metrics / "train.json").read_text())
    assert "weights.mlp" in trained.pop("callbacks")
    assert trained == without
    history = list(csv.DictReader((metrics / "history.tsv").read_text().splitlines(), delimiter="\t"))
    for name in TRACKERS:
        (run,) = runs(name)
        for number in ("val.loss", "train.accuracy", "tokens", "weights.mlp"):
            expected = [(int(row["step"]), pytest.approx(float(row[number]), rel=1e-6)) for row in history]
            assert points(name, run, number.replace(".", "/")) == expected


def tree(root: Path) -> dict[str, bytes]:
    """Every file of a project but what training itself writes, git's and DVC's own, and the curves."""
    ignored = {".git", ".resume", "metrics", "artifacts", "__pycache__", "tmp", *FOLDERS.values()}
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in files if not ignored & set(path.relative_to(root).parts)}


@pytest.mark.parametrize("stage", [False, True])
def test_nothing_else_in_the_project_changes(
    trained_project: Project, stage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = trained_project.root
    for name in (".gitignore", ".dvcignore", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, root)
    shutil.copytree(REPOSITORY / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "*.local"))

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        return subprocess.run(("git", *identity, *arguments), check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "all")
    if stage:
        for name, value in {
            "DVC_ROOT": str(root),
            "DVC_EXP_NAME": "here",
            "DVC_EXP_BASELINE_REV": "0" * 40,
        }.items():
            monkeypatch.setenv(name, value)
    before, references = tree(root), git("for-each-ref") + git("stash", "list")
    trained_project.succeed("train", "--set", f"train.eval_callbacks.use=[{','.join(TRACKERS)}]")
    assert tree(root) == before
    assert {line.split()[-1].split("/")[0] for line in git("status", "--porcelain").splitlines()} == {"metrics"}
    assert git("for-each-ref") + git("stash", "list") == references
    assert all(len(runs(name)) == 1 for name in TRACKERS)


def test_dvc_looks_away_from_the_curves() -> None:
    ignored = (REPOSITORY / ".dvcignore").read_text().splitlines()
    assert set(FOLDERS.values()) <= set(ignored)


# ── wandb and mlflow ──────────────────────────────────────────────────────────────────────────────


def refused(connect: Callable[..., None]) -> Callable[..., None]:
    """Only what is on this machine is connected with."""

    def local(connection: socket.socket, address: Any) -> None:
        assert connection.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(connection, address)

    return local


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_nothing_is_written_at_home_and_nobody_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)

    monkeypatch.setattr(socket.socket, "connect", refused(socket.socket.connect))
    training = Training()
    for step in (0, 20, 40):
        training.evaluate(callback(name), step)
    finish_wandb()
    assert list((tmp_path / "home").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == [FOLDERS[name]]


def test_mlflow_knows_whether_a_run_is_over() -> None:
    from mlflow import MlflowClient

    training = Training()
    for step, status in ((0, "RUNNING"), (20, "RUNNING"), (40, "FINISHED")):
        training.evaluate(callback("mlflow", experiment="mine"), step)
        client = MlflowClient(Path(".mlflow").resolve().as_uri())
        run = client.get_run(training.memory["run"])
        assert run.info.status == status
    assert client.get_experiment(run.info.experiment_id).name == "mine"


def test_a_server_that_goes_away_stops_no_run_and_misses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def away(*_: Any, **__: Any) -> None:
        raise MlflowException("nobody answers")

    training = Training()
    with monkeypatch.context() as context:
        context.setattr(MlflowClient, "create_run", away)
        with pytest.raises(MlflowException):  # at the first evaluation a person is there to see it
            training.evaluate(callback("mlflow"), 0)
    training.evaluate(callback("mlflow"), 0)
    with monkeypatch.context() as context:
        context.setattr(MlflowClient, "log_batch", away)
        context.setattr(MlflowClient, "create_run", away)
        training.evaluate(callback("mlflow"), 10)
    assert "mlflow: nobody answers" in capsys.readouterr().err
    training.evaluate(callback("mlflow"), 20)
    assert [step for step, _ in points("mlflow", current("mlflow", training))] == [0, 10, 20]
