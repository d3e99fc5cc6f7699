"""docs/colab.ipynb: its cells, and with `--long` a run on an own text; tests/test_workflow.py runs it otherwise."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tomllib
import types
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import REPOSITORY, made_up_text
from nbclient import NotebookClient
from ruamel.yaml import YAML
from test_dvc import Clone

NOTEBOOK = REPOSITORY / "docs" / "colab.ipynb"


def notebook(**settings: str) -> Any:
    """The notebook with these values in its first cell of code."""
    found = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = [cell for cell in found.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    return found


def shown_by(run: Any, cell: str) -> str:
    """All that a cell of a notebook showed, as JSON."""
    (found,) = [each for each in run.cells if each.id == cell]
    return json.dumps(found.outputs)


def execute(found: Any, clone: Clone, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Runs the notebook in the clone's folder docs, leaving the person's own Jupyter alone."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(home / name.lower()))
    folder = clone.root / "docs"
    folder.mkdir(exist_ok=True)
    client = NotebookClient(
        found, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**clone.environment(), "PYTHONPATH": str(clone.root)})


def test_the_notebook_is_committed_without_outputs() -> None:
    nbformat.validate(found := nbformat.read(NOTEBOOK, as_version=4))
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_it_keeps_a_torch_that_the_project_can_use() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (torch,) = [each for each in project["dependencies"] if each.startswith("torch>=")]
    least = tuple(map(int, torch.removeprefix("torch>=").split(".")))
    assert f">= {least}" in "".join(cell.source for cell in notebook().cells)


def test_uploaded_texts_are_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell that takes the texts, with a stand-in for Colab's module."""
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(upload=lambda: {"a.txt": b"one", "b.md": b"two"})
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.chdir(tmp_path)
    (cell,) = [cell for cell in notebook().cells if cell.id == "text"]
    commands: list[str] = []
    names: dict[str, Any] = {"TEXT": "upload", "SETTINGS": ["train.seed=2"], "MINUTES": 3}
    names |= {"sh": commands.append, "Path": Path, "shlex": shlex}
    exec(cell.source, names)
    assert {path.name: path.read_bytes() for path in Path("data/raw").iterdir()} == {
        "a.txt": b"one",
        "b.md": b"two",
    }
    added, fitted = commands
    assert added == "dvc add --quiet data/raw"
    assert fitted.startswith("python -m pipeline fit --minutes 3 ")
    assert "tokenize.corpus.name=files" in fitted
    assert "train.seed=2" in fitted


@pytest.mark.long
def test_it_trains_on_an_own_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = Clone(tmp_path / "project")
    shutil.rmtree(clone.root / "data" / "raw")
    (clone.root / "data" / "raw.dvc").unlink()
    clone.set_params("tokenize.corpus.name=python_docs")
    clone.commit("without texts")
    (tmp_path / "my text.txt").write_text(made_up_text(1, 4000))
    own = (tmp_path / "my text.txt").as_uri()
    run = notebook(TEXT=own, MINUTES=0.1, SETTINGS=["train.budget.amount=12"], CHANGE="train.seed=3")
    execute(run, clone, monkeypatch, tmp_path)
    assert (clone.root / "data" / "raw" / "my text.txt").is_file()
    params = YAML(typ="safe").load(clone.root / "params.yaml")
    assert params["tokenize"]["corpus"]["name"] == "files"
    assert params["train"]["budget"]["amount"] == 12
    assert "seed 3" in shown_by(run, "change")
    with zipfile.ZipFile(clone.root / "artifacts" / "export.zip") as archive:
        assert {"model.safetensors", "config.json"} <= set(archive.namelist())
