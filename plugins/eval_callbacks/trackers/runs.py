"""The folders of trackers: one per run. They are not outputs of a stage, so they never make a stage run again."""

import os
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any


def project_folder(name: str) -> Path:
    """The folder `name` of the project. DVC experiments in a copy also write into the main project."""
    return Path(os.environ.get("DVC_ROOT") or ".") / name


def run_name() -> str:
    """The name of a new run: that of the DVC experiment, or the current time."""
    return os.environ.get("DVC_EXP_NAME") or f"{datetime.now():%Y-%m-%d-%H%M%S}"


def run_folder(parent: str, memory: dict[str, Any]) -> Path:
    """The folder of the run below `parent` in the project; its name is stored in the callback's memory."""
    runs = project_folder(parent)
    if "run" not in memory:
        name = run_name()
        names = chain([name], (f"{name}-{number}" for number in count(2)))
        memory["run"] = next(each for each in names if not (runs / each).exists())
    folder = runs / memory["run"]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
