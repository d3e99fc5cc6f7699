"""The pipeline under DVC: what runs again when, experiments, and the files that each stage depends on."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, STAGES, TINY, make_project
from ruamel.yaml import YAML

from pipeline.cli import cli
from pipeline.core.environment import versions
from pipeline.core.source import import_closure
from pipeline.plugin.components import KINDS


def _yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def dvc_yaml() -> dict[str, Any]:
    loaded: dict[str, Any] = _yaml(REPOSITORY / "dvc.yaml")["stages"]
    return loaded


def rooms_of(stage: str, root: Path) -> set[str]:
    """The rooms that a stage's imports reach."""
    return {path.parts[1] for path in import_closure(f"pipeline.{stage}.stage", root) if len(path.parts) > 2}


def rooms_below_the_stages() -> set[str]:
    """The rooms that stages may import, by the contract on layers in pyproject.toml."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = settings["contracts"][0]["layers"]
    return {room.strip() for layer in layers[layers.index("stages") + 1 :] for room in layer.split("|")}


def check_rooms(stage: str, root: Path) -> None:
    """Checks that dvc.yaml lists the rooms that a stage imports, and that it may import them."""
    deps = _yaml(root / "dvc.yaml")["stages"][stage]["deps"]
    rooms = rooms_of(stage, root)
    assert {dep for dep in deps if dep.startswith("pipeline/")} == {f"pipeline/{room}" for room in rooms}
    assert rooms - {stage} <= rooms_below_the_stages() - {"params"}


def test_every_stage_of_dvc_yaml_is_a_room_and_every_stage_room_is_in_dvc_yaml() -> None:
    assert {path.parent.name for path in (REPOSITORY / "pipeline").glob("*/stage.py")} == set(STAGES)
    folders = {path.parent for path in (REPOSITORY / "pipeline").rglob("*.py")}
    for folder in folders:  # import-linter sees packages only; `check_rooms` checks the imports of a stage
        assert (folder / "__init__.py").is_file() or (folder / "stage.py").is_file(), folder


def test_the_commands_begin_with_the_stages_in_the_order_of_dvc_yaml() -> None:
    assert list(cli.commands)[: len(STAGES)] == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_depends_on_the_rooms_that_it_imports(stage: str) -> None:
    check_rooms(stage, REPOSITORY)


def versions_of(stage: str) -> list[str]:
    """The keys of environment.yaml that a stage depends on."""
    params = dvc_yaml()[stage].get("params", [])
    return [key for each in params if isinstance(each, dict) for key in each["environment.yaml"]]


def test_each_stage_depends_on_the_plugins_and_packages_of_the_kinds_it_loads() -> None:
    for stage in STAGES:
        deps = sorted(dep.split("/")[1] for dep in dvc_yaml()[stage]["deps"] if dep.startswith("plugins/"))
        module = importlib.import_module(f"pipeline.{stage}.stage")
        kinds = getattr(module, "KINDS", [])
        assert deps == sorted(kinds)
        packages = [key for key in versions_of(stage) if key.startswith("plugins")]
        assert packages == [f"plugins.{kind}" for kind in kinds]


def test_training_depends_on_every_version_that_decides_its_result() -> None:
    """Those of the tokenizers decide the splits, on which training depends."""
    recorded = {key for key in versions_of("train") if not key.startswith("plugins")}
    assert recorded | {"tokenizers", "tiktoken"} == set(versions())
    assert set(_yaml(REPOSITORY / "environment.yaml")) == {*versions(), "plugins"}


def test_no_command_is_templated() -> None:
    for stage in STAGES:
        assert dvc_yaml()[stage]["cmd"] == f"python -m pipeline {stage}"


# ── a whole project under DVC ─────────────────────────────────────────────────────────────────────


class Clone:
    """A committed clone of this project with tiny params and texts of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_project(root)
        for name in ("pipeline", ".dvc"):
            ignore = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
            shutil.copytree(REPOSITORY / name, root / name, ignore=ignore)
        for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(REPOSITORY / name, root)
        (root / "data" / "README.md").write_text("Texts go to raw/.\n")
        shutil.copytree(REPOSITORY / "data" / "weights", root / "data" / "weights")
        self.set_params(*TINY)
        self.git("init", "-q")
        self.run("python", "-m", "pipeline", "lock")
        self.run("dvc", "add", "-q", "data/raw")
        self.commit("start")

    @classmethod
    def of(cls, other: Clone, root: Path) -> Clone:
        """A git clone of another one, with what git and DVC bring."""
        subprocess.run(["git", "clone", "-q", str(other.root), str(root)], check=True)
        return cls.at(root)

    @classmethod
    def at(cls, root: Path) -> Clone:
        """The clone that is in a folder."""
        clone = cls.__new__(cls)
        clone.root = root
        return clone

    def copy(self, root: Path) -> Clone:
        """A copy with everything that lies in the folder."""
        shutil.copytree(self.root, root, symlinks=True)
        return Clone.at(root)

    @staticmethod
    def environment() -> dict[str, str]:
        """As a person's shell has it, with the tools that are tested here first."""
        names = ("DVC_ROOT", "DVC_STAGE", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment["OMP_NUM_THREADS"] = "1"
        for who in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{who}_NAME": "t", f"GIT_{who}_EMAIL": "t@t"}
        return environment

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            command, cwd=self.root, env=self.environment(), text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert not check or result.returncode == 0, result.stdout
        return result

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).stdout

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    def set_params(self, *values: str) -> None:
        """Writes values into params.yaml, as a person would."""
        yaml = YAML()
        path = self.root / "params.yaml"
        params = yaml.load(path)
        for each in values:
            key, _, value = each.partition("=")
            *parents, last = key.split(".")
            place = params
            for parent in parents:
                place = place[parent]
            place[last] = YAML(typ="safe").load(value)
        yaml.dump(params, path)

    def repro(self) -> list[str]:
        """The stages that `dvc repro` ran."""
        output = self.run("dvc", "repro").stdout
        return [stage for stage in STAGES if f"Running stage '{stage}'" in output]

    def metrics(self, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.root / "metrics" / f"{name}.json").read_text())
        return loaded


@pytest.fixture(scope="module")
def clone(first_run: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The first run, committed; what a test changes it takes back."""
    clone = first_run.copy(tmp_path_factory.mktemp("dvc") / "project")
    clone.commit("first run")
    return clone


def test_a_changed_text_behind_a_link_is_seen(first_run: Clone, tmp_path: Path) -> None:
    clone, disk = first_run.copy(tmp_path / "project"), tmp_path / "disk"
    (clone.root / "data" / "raw").rename(disk)
    (clone.root / "data" / "raw").symlink_to(disk)
    (clone.root / "data" / "raw.dvc").unlink()
    refused = clone.run("dvc", "repro", "tokenize", check=False)
    assert refused.returncode != 0
    assert "data/raw is a link to a folder" in refused.stdout
    lock = ("python", "-m", "pipeline", "lock")
    assert "data/.raw.manifest.json written" in clone.run(*lock).stdout
    clone.run("dvc", "repro", "tokenize")
    assert "up to date" in clone.run("dvc", "status", "tokenize").stdout
    next(disk.glob("*.txt")).write_text("the river runs to a sea of light")
    clone.run(*lock)
    assert re.search(r"modified: +data\n", clone.run("dvc", "status", "tokenize").stdout)
    clone.run("dvc", "repro", "tokenize")
    assert "up to date" in clone.run("dvc", "status", "tokenize").stdout


def test_a_second_repro_runs_nothing(clone: Clone) -> None:
    assert clone.repro() == []
    assert clone.git("status", "--porcelain") == ""


def test_a_changed_sampler_evaluates_again_and_does_not_train(clone: Clone) -> None:
    path = clone.root / "plugins" / "samplers" / "top_k.py"
    source = path.read_text()
    path.write_text(source.replace("most likely tokens", "likeliest tokens"))
    assert clone.repro() == ["evaluate"]
    path.write_text(source)
    assert clone.repro() == []  # from the run cache


def test_runtime_is_no_reason_to_run_again(clone: Clone) -> None:
    clone.set_params("runtime.save_seconds=5")
    assert clone.repro() == []
    clone.git("checkout", "-q", "params.yaml")


@pytest.mark.long
def test_metrics_diff_shows_what_a_changed_rate_did(clone: Clone) -> None:
    before = clone.metrics("train")
    clone.set_params("train.optimizer.muon.lr=0.02")
    assert clone.repro() == ["train", "evaluate", "export"]
    diff = json.loads(clone.run("dvc", "metrics", "diff", "--json").stdout)
    change = diff["metrics/train.json"]["val.loss"]
    assert change["old"] == before["val"]["loss"]
    assert change["new"] == clone.metrics("train")["val"]["loss"]
    assert change["diff"] != 0
    assert 0 < len(diff["metrics/evaluate.json"]) <= 10, "what is compared, and not what is known beside it"
    clone.git("checkout", "-q", "params.yaml")
    shutil.rmtree(clone.root / ".resume")
    assert clone.repro() == []  # from the run cache
    assert clone.metrics("train") == before
    clone.git("checkout", "-q", ".")


def test_a_package_with_one_sampler_runs_evaluate_and_nothing_before_it(
    clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = (REPOSITORY / "plugins" / "samplers" / "greedy.py").read_text()
    install(tmp_path, "noisy", greedy.replace('"greedy"', '"noisy"'))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "samplers {} → " in clone.run("python", "-m", "pipeline", "lock").stdout
    assert list(json.loads(clone.run("dvc", "status", "--json").stdout)) == ["evaluate"]
    install(tmp_path, "noisy", "import nonsense_module\n")
    told = clone.run("python", "-m", "pipeline", "lock").stdout
    assert re.search(r"note: entry point noisy = noisy of package noisy 1.0: .*ModuleNotFoundError", told)
    environment = _yaml(clone.root / "environment.yaml")
    assert environment["plugins"] == {kind: {"noisy": "1.0"} for kind in KINDS}
    clone.git("checkout", "-q", "environment.yaml")


def install(site: Path, name: str, source: str) -> None:
    """Puts a package with an entry point of plugins into a folder that PYTHONPATH can name."""
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (site / f"{name}.py").write_text(source)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[pipeline.plugins]\n{name} = {name}\n")


@pytest.mark.long
def test_experiments_train_with_muon_here_in_a_copy_and_queued(clone: Clone) -> None:
    """The copy runs its own code and plugins, and its metrics are the workspace's, bit for bit."""
    plugin = clone.root / "plugins" / "eval_callbacks" / "where.py"
    plugin.write_text(
        "from typing import ClassVar\n"
        "from pipeline.plugin import EvalCallback, hookimpl\n\n"
        "class Where(EvalCallback):\n"
        '    """Says where it runs."""\n'
        '    name: ClassVar[str] = "where"\n'
        "    def on_evaluation(self, event):\n"
        "        return {'in_a_copy': float('/.dvc/tmp/exps/' in __file__)}\n\n"
        "@hookimpl\n"
        "def register_eval_callbacks():\n"
        "    return [Where]\n"
    )
    clone.commit("a plugin")
    settings = ["-S", "train.optimizer.name=muon", "-S", "train.eval_callbacks.use=[where]"]
    clone.run("dvc", "exp", "run", "-n", "here", *settings, "train")
    here = clone.metrics("train")
    history = (clone.root / "metrics" / "history.tsv").read_text()
    assert where(history) == ["0.0", "0.0", "0.0"]
    clone.git("checkout", "-q", ".")

    clone.run("dvc", "exp", "run", "--temp", "-n", "copy", *settings, "-S", "train.seed=2", "train")
    clone.run("dvc", "exp", "run", "--queue", "-n", "queued", *settings, "-S", "train.seed=3", "train")
    clone.run("dvc", "queue", "start")
    clone.run("dvc", "queue", "logs", "queued", "-f")
    shown = clone.git("show", f"{_experiment(clone, 'copy')}:metrics/history.tsv")
    assert where(shown) == ["1.0", "1.0", "1.0"]
    assert json.loads(clone.git("show", f"{_experiment(clone, 'queued')}:metrics/train.json")) != here


def where(history: str) -> list[str]:
    """What the plugin recorded at each evaluation: whether it ran in a copy of the project."""
    return [row["in_a_copy"] for row in csv.DictReader(history.splitlines(), delimiter="\t")]


def _experiment(clone: Clone, name: str) -> str:
    """The git reference of an experiment."""
    references = clone.git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    return next(reference for reference in references if reference.endswith(f"/{name}"))


CARD = '''"""Write a card with the size of the model.

Writes artifacts/card.
"""

from pipeline.core.console import fact
from pipeline.core.files import write_json
from pipeline.core.publication import published_folder
from pipeline.model.run_record import read_record


def run(params, paths):
    with published_folder(paths.root / "artifacts" / "card", paths) as folder:
        write_json(folder / "card.json", {"layers": read_record(paths.checkpoint).params["model"]["n_layers"]})
    fact("wrote", "artifacts/card")
'''
CARD_IN_DVC = """
  card:
    cmd: python -m pipeline card
    deps:
      - artifacts/checkpoint
      - metrics/evaluate.json
      - pipeline/card
      - pipeline/model
      - pipeline/data
      - pipeline/plugin
      - pipeline/core
    outs:
      - artifacts/card

plots:
"""


def test_a_stage_is_added_in_two_files(clone: Clone) -> None:
    stage, pipeline = clone.root / "pipeline" / "card" / "stage.py", clone.root / "dvc.yaml"
    stage.parent.mkdir()
    stage.write_text(CARD)
    pipeline.write_text(pipeline.read_text().replace("\nplots:\n", CARD_IN_DVC, 1))
    check_rooms("card", clone.root)
    commands = clone.run("python", "-m", "pipeline", "--help").stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in commands][: len(STAGES) + 1] == [*STAGES, "card"]
    assert "Write a card with the size of the model." in commands[len(STAGES)]
    output = clone.run("dvc", "repro").stdout
    assert re.findall(r"Running stage '(\w+)'", output) == ["card"]
    written = clone.root / "artifacts" / "card" / "card.json"
    assert json.loads(written.read_text()) == {"layers": 2}
    written.unlink()
    assert "wrote    artifacts/card" in clone.run("python", "-m", "pipeline", "card").stdout
    assert written.is_file()
    for folder in (stage.parent, written.parent):
        shutil.rmtree(folder)
    clone.git("checkout", "-q", ".")


@pytest.mark.long
def test_a_comment_in_what_all_stages_share_changes_no_output_and_computes_nothing_long(clone: Clone) -> None:
    """DVC starts every stage, since all depend on pipeline/core; the long ones find their results in its cache."""
    before = (clone.root / "dvc.lock").read_text()
    with (clone.root / "pipeline" / "core" / "console.py").open("a") as file:
        file.write("\n# A comment.\n")
    output = clone.run("dvc", "repro").stdout
    for stage in ("train", "evaluate", "export"):
        assert f"the result of {stage} is unchanged" in output
    assert clone.git("status", "--porcelain", "metrics") == ""
    outputs = [outs_of(text) for text in (before, (clone.root / "dvc.lock").read_text())]
    assert outputs[0] == outputs[1]
    clone.git("checkout", "-q", ".")
    clone.repro()


def outs_of(lock: str) -> dict[str, Any]:
    """The outputs that a dvc.lock names."""
    return {name: stage["outs"] for name, stage in YAML(typ="safe").load(lock)["stages"].items()}


def test_a_fresh_clone_publishes_the_result_in_dvcs_cache_again(clone: Clone, tmp_path: Path) -> None:
    """After `dvc pull`, without saved states: an edit of what nobody chose runs train, which does not train."""
    clone.run("dvc", "remote", "add", "-f", "-d", "shared", str(tmp_path / "remote"))
    clone.commit("a remote")
    clone.run("dvc", "push", "-q")
    fresh = Clone.of(clone, tmp_path / "fresh")
    fresh.run("dvc", "pull", "-q")
    assert not (fresh.root / ".resume").exists()
    for path in ("plugins/losses/focal.py", "plugins/optimizers/sgd.py"):
        with (fresh.root / path).open("a") as file:
            file.write("USED_NOWHERE = 1\n")
    output = fresh.run("dvc", "repro").stdout
    assert "published again from DVC's cache" in output
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in output] == ["train"]
    assert fresh.git("status", "--porcelain", "metrics") == ""
    assert fresh.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."

    other = Clone.of(clone, tmp_path / "other")
    other.run("dvc", "fetch", "-q", "split", "data/raw.dvc")
    with (other.root / "plugins" / "losses" / "focal.py").open("a") as file:
        file.write("USED_NOWHERE = 1\n")
    assert "`dvc fetch train`" in other.run("dvc", "repro", "--pull", "train", check=False).stdout


def test_what_is_not_chosen_trains_nothing_and_a_new_loss_trains_when_it_is_chosen(clone: Clone) -> None:
    """A file in plugins/losses and an option of another optimizer make DVC start the train stage, which finds that
    nothing was chosen anew."""
    clone.git("checkout", "-q", ".")
    clone.repro()
    before = clone.metrics("train"), clone.metrics("performance")
    clone.run("python", "-m", "pipeline", "plugins", "new", "loss", "mine")
    clone.set_params("train.optimizer.lion.beta2=0.5")
    assert clone.repro() == ["train"]
    assert clone.git("status", "--porcelain", "metrics") == ""
    assert (clone.metrics("train"), clone.metrics("performance")) == before
    clone.set_params("train.loss.name=mine", "train.loss.mine={ceiling: 2.0}")
    assert clone.repro() == ["train", "evaluate", "export"]
    assert clone.metrics("train")["train"]["objective"] < 2.0 < clone.metrics("train")["train"]["loss"]
