"""What the shipped eval callbacks do: who stops when, who samples when, and what the loggers' own readers read."""

from __future__ import annotations

import builtins
import csv
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Project
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.plugin import EvalCallback, EvaluationEvent, StopTraining
from pipeline.plugin.registry import Registry
from pipeline.plugin.testing import check_eval_callback

LOGGERS = ("tensorboard", "dvclive")
FOLDERS = {"tensorboard": ".tensorboard", "dvclive": ".dvclive"}


def callback(name: str, **options: Any) -> EvalCallback:
    registry = Registry.load(REPOSITORY / "plugins", ["eval_callbacks"])
    built: EvalCallback = registry.build("eval_callbacks", name, {name: options}, "")
    return built


class Training:
    """A run's evaluations as a callback sees them; `saved` and `restored` are a kill and a resume."""

    def __init__(self, total_steps: int = 40, model: torch.nn.Module | None = None) -> None:
        self.total_steps, self.model = total_steps, model or torch.nn.Linear(2, 2)
        self.history: list[dict[str, float]] = []
        self.memory: dict[str, Any] = {}
        self.shown: list[str] = []

    def evaluate(self, callback: EvalCallback, step: int, **metrics: float) -> dict[str, float]:
        row = {"step": step, "val.loss": 4.0 - step / 100, **metrics}
        numbers = callback.on_evaluation(
            EvaluationEvent(
                step=step,
                total_steps=self.total_steps,
                metrics=dict(row),
                history=tuple(self.history),
                generate=lambda prompt, max_new_tokens, temperature: prompt,
                show=lambda text: self.shown.append(f"{step} {text}"),
                model=self.model,
                memory=self.memory,
            )
        )
        self.history.append({**row, **numbers})
        return numbers

    def saved(self) -> str:
        return json.dumps([self.history, self.memory])

    def restored(self, saved: str) -> None:
        self.history, self.memory = json.loads(saved)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written goes to a fresh folder, and the environment is afterwards as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STUDIO_OFFLINE", "true")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tensorboard", {}),
        ("dvclive", {}),
        ("weight_norms", {}),
        ("target_loss", {}),
        ("target_loss", {"value": 0.5}),
        ("spike_guard", {}),
        ("spike_guard", {"rise": 0.1, "patience": 1}),
        ("sample_text", {"each": "epoch"}),
    ],
)
def test_each_keeps_the_contract(name: str, options: dict[str, Any]) -> None:
    check_eval_callback(callback(name, **options))


# ── tensorboard and dvclive ───────────────────────────────────────────────────────────────────────


def points(name: str, run: Path, number: str = "val/loss") -> list[tuple[int, float]]:
    """What the logger's own reader, or its file, says of a number: steps and values."""
    if name == "tensorboard":
        return [(point.step, point.value) for point in EventAccumulator(str(run)).Reload().Scalars(number)]
    with (run / "plots" / "metrics" / f"{number}.tsv").open() as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [(int(row["step"]), float(row[number.rpartition("/")[2]])) for row in rows]


def runs(name: str) -> list[Path]:
    return sorted(Path(FOLDERS[name]).iterdir())


@pytest.mark.parametrize("name", LOGGERS)
def test_every_number_is_read_back_at_its_step(name: str) -> None:
    training = Training()
    for step in (0, 10, 20):
        training.evaluate(callback(name), step, **({"grad_norm": 0.5 + step} if step else {}))
    (run,) = runs(name)
    assert points(name, run) == [(0, 4.0), (10, pytest.approx(3.9)), (20, pytest.approx(3.8))]
    assert points(name, run, "grad_norm") == [(10, 10.5), (20, 20.5)]


@pytest.mark.parametrize("name", LOGGERS)
@pytest.mark.parametrize("torn", [False, True])
def test_what_a_killed_run_wrote_after_its_last_state_is_not_there_twice(name: str, torn: bool) -> None:
    training = Training()
    training.evaluate(callback(name), 0)
    training.evaluate(callback(name), 10)
    saved = training.saved()
    training.evaluate(callback(name), 20)
    training.evaluate(callback(name), 30)
    (run,) = runs(name)
    if torn:  # in the middle of a write
        last = run / ("metrics.json" if name == "dvclive" else "events.out.tfevents.train")
        last.write_bytes(last.read_bytes()[:-9])
    training.restored(saved)
    for step in (20, 30, 40):
        training.evaluate(callback(name), step)
    assert runs(name) == [run]
    assert [step for step, _ in points(name, run)] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_folder_that_was_removed_is_begun_again(name: str) -> None:
    training = Training()
    training.evaluate(callback(name), 0)
    training.evaluate(callback(name), 10)
    (run,) = runs(name)
    shutil.rmtree(run)
    training.evaluate(callback(name), 20)
    training.evaluate(callback(name), 30)
    assert [step for step, _ in points(name, run)][-2:] == [20, 30]


@pytest.mark.parametrize("name", LOGGERS)
@pytest.mark.parametrize("experiment", ["", "spiky-ends"])
def test_two_runs_have_two_folders(name: str, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", experiment)
    for _ in range(2):
        Training().evaluate(callback(name), 0)
    assert [len(points(name, run)) for run in runs(name)] == [1, 1]
    assert not experiment or [run.name for run in runs(name)] == [experiment, f"{experiment}-2"]


@pytest.mark.parametrize("name", LOGGERS)
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


@pytest.mark.parametrize("name", LOGGERS)
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


def test_logging_changes_no_result_and_an_interrupted_run_goes_on_in_its_curves(trained_project: Project) -> None:
    metrics = trained_project.root / "metrics"
    without = (metrics / "train.json").read_text()
    (trained_project.root / "plugins" / "eval_callbacks" / "interrupt.py").write_text(INTERRUPT)
    using = ("--set", "train.eval_callbacks.use=[sample_text,weight_norms,interrupt,tensorboard,dvclive]")
    assert trained_project.run("train", *using).code == 130
    assert "going on from step 3" in trained_project.succeed("train", *using).out
    assert (metrics / "train.json").read_text() == without
    history = list(csv.DictReader((metrics / "history.tsv").read_text().splitlines(), delimiter="\t"))
    for name in LOGGERS:
        (run,) = runs(name)
        for number in ("val.loss", "train.accuracy", "tokens", "weights.mlp"):
            expected = [(int(row["step"]), pytest.approx(float(row[number]), rel=1e-6)) for row in history]
            assert points(name, run, number.replace(".", "/")) == expected


def tree(root: Path) -> dict[str, bytes]:
    """Every file of a project but what training itself writes, git's and DVC's own, and the curves."""
    own = {".git", ".resume", "metrics", "artifacts", "__pycache__", "tmp", *FOLDERS.values()}
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in files if not own & set(path.relative_to(root).parts)}


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
    trained_project.succeed("train", "--set", "train.eval_callbacks.use=[tensorboard,dvclive]")
    assert tree(root) == before
    assert {line.split()[-1].split("/")[0] for line in git("status", "--porcelain").splitlines()} == {"metrics"}
    assert git("for-each-ref") + git("stash", "list") == references
    assert all(len(runs(name)) == 1 for name in LOGGERS)


def test_dvc_looks_away_from_the_curves() -> None:
    ignored = (REPOSITORY / ".dvcignore").read_text().splitlines()
    assert set(FOLDERS.values()) <= set(ignored)


# ── target_loss ───────────────────────────────────────────────────────────────────────────────────


def test_a_run_ends_at_the_first_evaluation_that_reaches_the_target(trained_project: Project) -> None:
    metrics = trained_project.root / "metrics"
    rows = csv.DictReader((metrics / "history.tsv").read_text().splitlines(), delimiter="\t")
    start, middle, end = (float(row["val.loss"]) for row in rows)
    assert start > middle > end

    def steps(value: float) -> int:
        use = ("--set", "train.eval_callbacks.use=[target_loss]")
        result = trained_project.succeed("train", *use, "--set", f"train.eval_callbacks.target_loss.value={value}")
        written: int = json.loads((metrics / "train.json").read_text())["steps"]
        assert ("was the target" in result.out) == (value >= end)
        return written

    assert steps(middle) == 3  # at the value itself
    assert steps((middle + end) / 2) == 6
    assert steps(end / 2) == 6  # never reached


# ── weight_norms ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied", [False, True])
def test_weight_norms_are_those_of_the_parts(tied: bool) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(300, 8, 2, 2, 16, 0.0, True, tied, "pytorch", 64))
    parts = {
        "embedding": [model.token_embedding, model.position_embedding],
        "attention": [layer for block in model.blocks for layer in (block.attention.qkv, block.attention.out)],
        "mlp": [layer for block in model.blocks for layer in (block.mlp.up, block.mlp.down)],
        "norm": [norm for block in model.blocks for norm in (block.attention_norm, block.mlp_norm)] + [model.norm],
        "head": [] if model.head is None else [model.head],
    }
    numbers = Training(model=model).evaluate(callback("weight_norms"), 0)
    expected = {}
    for part, modules in parts.items():
        if modules:
            weights = torch.cat([module.weight.detach().double().flatten() for module in modules])
            expected[f"weights.{part}"] = math.sqrt(weights.square().mean())
    assert numbers == pytest.approx(expected, rel=1e-5)
    assert ("weights.head" in numbers) != tied
    assert numbers == Training(model=model).evaluate(callback("weight_norms"), 0)


# ── sample_text ───────────────────────────────────────────────────────────────────────────────────


def sampled(epochs: list[float], **options: Any) -> list[int]:
    """The evaluations, of which `epochs` tells how far each is, that show a sample."""
    training = Training(total_steps=len(epochs) - 1)
    for step, epoch in enumerate(epochs):
        training.evaluate(callback("sample_text", **options), step, epoch=epoch)
    return [int(text.split()[0]) for text in training.shown]


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [
        ([0, 0.5, 1, 1.5, 2], [0, 2, 4]),  # the textbook's: after each epoch
        ([0, 0.4, 0.8, 1.2, 1.6, 2.4, 2.8], [0, 3, 5, 6]),  # an epoch ends between two evaluations
        ([0, 2.5, 2.6], [0, 1, 2]),  # two epochs end: one sample
        ([0, 0.1, 0.2], [0, 2]),  # none ends
    ],
)
def test_a_sample_each_epoch(epochs: list[float], shown: list[int]) -> None:
    assert sampled(epochs, each="epoch") == shown
    assert sampled(epochs) == list(range(len(epochs)))


# ── spike_guard ───────────────────────────────────────────────────────────────────────────────────


def evaluated(losses: list[float], **options: Any) -> int:
    """After how many evaluations a spike guard ended the run; all of them where it did not."""
    training = Training()
    for number, loss in enumerate(losses):
        try:
            training.evaluate(callback("spike_guard", **options), number, **{"val.loss": loss})
        except StopTraining:
            return number + 1
        training.restored(training.saved())
    return len(losses)


def test_a_spike_that_stays_ends_the_run() -> None:
    assert evaluated([4.0, 3.0, 4.1, 4.2, 4.3]) == 4
    assert evaluated([4.0, 3.0, 4.1, 4.2, 4.3], patience=1) == 3
    assert evaluated([4.0, 3.0, 4.1, 4.2, 4.3], rise=1.15) == 5


def test_a_spike_that_comes_back_and_a_slow_rise_do_not() -> None:
    assert evaluated([4.0, 3.0, 5.0, 3.1, 5.0, 3.2, 2.0]) == 7
    assert evaluated([3.0, 3.4, 3.8, 3.9, 4.0]) == 5
    assert evaluated([8.0, 9.0, 9.0]) == 3  # one nat above is not yet more than one
