"""What decides a run and what does not: a finished run is published again, an interrupted one resumes, or it starts
over and says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Project
from ruamel.yaml import YAML

from pipeline.core.fingerprint import _imported
from pipeline.core.source import code_digest

LOSS = "plugins/losses/{}.py"
RESUMED = "resuming from step 4"
OVER = "training starts over"
AGAIN = "already complete"


def published(root: Path) -> dict[str, bytes]:
    """Every published file by its path."""
    files = [path for name in ("artifacts/checkpoint", "metrics") for path in (root / name).rglob("*")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.is_file()}


def add_line(path: Path, line: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + line, encoding="utf-8")


def set_option(root: Path, section: str, value: Any) -> None:
    """Sets a value of params.yaml."""
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    *parents, key = section.split(".")
    place = params
    for part in parents:
        place = place[part]
    place[key] = value
    yaml.dump(params, root / "params.yaml")


def new_plugin(root: Path) -> None:
    shutil.copy(root / LOSS.format("focal"), root / LOSS.format("unused"))
    path = root / LOSS.format("unused")
    path.write_text(path.read_text().replace('"focal"', '"unused"'))


UNUSED = {
    "a new plugin": new_plugin,
    "an edit": lambda root: add_line(root / LOSS.format("focal"), "USED_NOWHERE = 1\n"),
    "a syntax error": lambda root: add_line(root / LOSS.format("focal"), "def (\n"),
    "a deletion": lambda root: (root / LOSS.format("focal")).unlink(),
    "an option": lambda root: set_option(root, "train.optimizer.lion.beta2", 0.5),
    "an option of another model": lambda root: set_option(root, "model.llama.rope_theta", 5.0e5),
}
"""Changes of components that no param names."""


@pytest.mark.parametrize("change", UNUSED)
def test_what_is_not_chosen_decides_nothing(interrupted: Project, change: str) -> None:
    UNUSED[change](interrupted.root)
    out = interrupted.succeed("train").out
    assert RESUMED in out
    assert OVER not in out
    before = published(interrupted.root)
    shutil.rmtree(interrupted.root / "artifacts" / "checkpoint")
    shutil.rmtree(interrupted.root / "metrics")
    out = interrupted.succeed("train").out
    assert AGAIN in out
    assert "step " not in out.replace("best     step", "")  # nothing was trained or evaluated
    assert published(interrupted.root) == before


def test_a_tracker_may_join_a_run(interrupted: Project) -> None:
    pytest.importorskip("tensorboard")
    use = "train.eval_callbacks.use=[temperature_scaling, sample_text, tensorboard]"
    assert RESUMED in interrupted.succeed("train", "--set", use, "--set", "model.dropout=0.0").out
    before = published(interrupted.root)
    assert AGAIN in interrupted.succeed("train").out
    assert published(interrupted.root) == before


def test_a_callback_that_shows_or_returns_something_does_not(interrupted: Project) -> None:
    assert OVER in interrupted.succeed("train", "--set", "train.eval_callbacks.use=[weight_norms]").out


def test_an_edit_of_the_chosen_plugin_starts_over_and_names_the_file(interrupted: Project) -> None:
    path = interrupted.root / LOSS.format("cross_entropy")
    before = path.read_text()
    path.write_text(f"# A comment.\n{before}\n# Another.\n")
    assert RESUMED in interrupted.succeed("train").out
    path.write_text(before + "USED_NOWHERE = 1\n")
    out = interrupted.succeed("train").out
    assert OVER in out
    assert "plugins losses/cross_entropy.py" in out


def test_an_edit_of_a_helper_that_the_chosen_plugin_imports_starts_over_and_names_it(interrupted: Project) -> None:
    losses = interrupted.root / "plugins" / "losses"
    (losses / "own").mkdir()
    plugin = (losses / "cross_entropy.py").read_text().replace('"cross_entropy"', '"own"')
    (losses / "own" / "__init__.py").write_text(f"from .helper import FACTOR\n{plugin}")
    (losses / "own" / "helper.py").write_text("FACTOR = 1.0\n")
    use = ("--set", "train.loss.name=own")
    interrupted.succeed("train", *use)
    add_line(losses / "own" / "helper.py", "# a comment\n")
    assert AGAIN in interrupted.succeed("train", *use).out
    (losses / "own" / "helper.py").write_text("FACTOR = 2.0\n")
    assert "plugins losses/own/helper.py" in interrupted.succeed("train", *use).out


def test_the_version_of_a_package_that_a_chosen_plugin_imports_is_in_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "plugin.py"
    path.write_text("import json\nimport pluggy\nimport torch\n")
    assert list(_imported([path])) == ["pluggy"]


def test_a_comment_anywhere_in_the_code_changes_no_digest(tmp_path: Path) -> None:
    for path in (REPOSITORY / "pipeline" / "core").glob("*.py"):
        copy = tmp_path / path.name
        copy.write_text(path.read_text(encoding="utf-8") + "\n# a comment\n", encoding="utf-8")
        assert code_digest(copy) == code_digest(path)


# ── what made it ──────────────────────────────────────────────────────────────────────────────────


def test_the_checkpoint_records_what_made_it_with_what_was_set(trained_project: Project) -> None:
    trained_project.succeed("train", "--set", "train.optimizer.name=sgd", "--set", "train.optimizer.sgd.lr=0.25")
    record = json.loads((trained_project.root / "artifacts" / "checkpoint" / "run.json").read_text())
    params = record["params"]
    assert list(params) == ["tokenize", "split", "model", "train"]
    assert params["train"]["optimizer"]["name"] == "sgd"
    assert params["train"]["optimizer"]["sgd"]["lr"] == 0.25
    assert set(params["train"]["optimizer"]) == {"name", "sgd"}
    assert set(params["train"]["loss"]) == {"name", "cross_entropy"}
    assert params["tokenize"]["corpus"]["name"] == "files"
    assert set(params["tokenize"]["corpus"]) == {"name", "files"}
    assert params["model"]["n_layers"] == 2
    assert {"python", "torch", "numpy", "tokenizers", "tiktoken"} <= record["versions"].keys()
    assert (trained_project.root / ".resume" / record["identity"]).is_dir()


def test_the_checkpoint_holds_the_metrics_of_its_run(trained_project: Project) -> None:
    files = published(trained_project.root)
    names = {"train.json", "performance.json", "history.tsv", "steps.tsv", "timing.tsv"}
    assert {name.rpartition("/")[2] for name in files if name.startswith("metrics/")} == names
    for name in names:
        assert files[f"artifacts/checkpoint/metrics/{name}"] == files[f"metrics/{name}"]


def test_the_checkpoint_loads_as_plain_tensors(trained_project: Project) -> None:
    path = trained_project.root / "artifacts" / "checkpoint" / "model_and_optimizer.pth"
    assert {"model_state_dict", "optimizer_state_dict"} <= torch.load(path, weights_only=True).keys()
