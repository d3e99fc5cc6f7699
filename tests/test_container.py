"""The Dockerfile and the dev container name what pyproject.toml, the Makefile and environment.yaml have."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from conftest import REPOSITORY
from ruamel.yaml import YAML

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
ARGUMENTS = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, flags=re.MULTILINE))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_the_image_has_the_python_of_the_recorded_results() -> None:
    (version,) = re.findall(r"python:(\d+\.\d+)", ARGUMENTS["BASE"])
    assert version == YAML(typ="safe").load(REPOSITORY / "environment.yaml")["python"]
    assert PROJECT["requires-python"] == f">={version}"


def test_the_image_and_the_notebook_have_the_extras_that_make_repro_installs() -> None:
    (installed,) = re.findall(r"^\$\(INSTALLED\): EXTRAS := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.M)
    assert ARGUMENTS["EXTRAS"] == installed
    assert f'extras = \\"{installed}\\"' in (REPOSITORY / "docs" / "colab.ipynb").read_text()
    assert set(installed.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_the_image_gets_all_that_installing_reads_and_nothing_else() -> None:
    copied = {
        name
        for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
        for name in line.split()
    }
    assert copied == {"pipeline", "pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]}
    sent = re.findall(r"^!(.+)$", (REPOSITORY / ".dockerignore").read_text(), flags=re.MULTILINE)
    assert set(sent) == copied


def test_the_dev_container_is_made_of_the_dockerfile() -> None:
    path = REPOSITORY / ".devcontainer" / "devcontainer.json"
    settings = json.loads(path.read_text())
    build = settings["build"]
    assert (path.parent / build["dockerfile"]).resolve() == REPOSITORY / "Dockerfile"
    assert (path.parent / build["context"]).resolve() == REPOSITORY
    assert build["args"].keys() <= ARGUMENTS.keys()
    assert set(build["args"]["EXTRAS"].split(",")) <= PROJECT["optional-dependencies"].keys()
    assert f"WORKDIR {settings['workspaceFolder']}\n" in DOCKERFILE
    assert f"target={settings['workspaceFolder']}," in settings["workspaceMount"]
    assert re.search(rf"useradd .* {settings['remoteUser']} ", DOCKERFILE)
    python = Path(settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"])
    assert f"python3 -m venv {python.parents[1]} " in DOCKERFILE
