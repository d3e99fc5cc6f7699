"""The wheel: what plugin packages of other people depend on holds every file of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, STAGES


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the installed setuptools as `pip wheel --no-build-isolation` does: without a network."""
    root = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, root)
    shutil.copytree(REPOSITORY / "pipeline", root / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools.build_meta as backend; backend.build_wheel('out')"
    subprocess.run([sys.executable, "-c", build], cwd=root, check=True, capture_output=True)
    (built,) = (root / "out").glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    source = REPOSITORY / "pipeline"
    files = {path.relative_to(REPOSITORY).as_posix() for path in source.rglob("*") if path.is_file()}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {name for name in files if "__pycache__" not in name}
    for suffix in (".j2", ".css", ".yaml", ".txt"):
        assert any(name.endswith(suffix) for name in held), suffix


def test_what_was_installed_from_the_wheel_works_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    (elsewhere / "plugins").mkdir(parents=True)

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments], cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(site)}, text=True,
            check=True, capture_output=True,
        ).stdout  # fmt: skip

    names = run("-m", "pipeline", "--help").partition("Commands:\n")[2].split()
    assert [name for name in names if name in STAGES] == STAGES
    assert run("-c", "import pipeline.plugin; print(pipeline.plugin.__file__)").startswith(str(site))
    changed = run("-m", "pipeline", "preset", "book")
    assert "params.yaml" in changed
    assert "preset book" in changed
    run("-m", "pipeline", "plugins", "new", "loss", "mine")
    assert "loss mine  ·  plugins/losses/mine.py" in run("-m", "pipeline", "plugins", "show", "mine")
