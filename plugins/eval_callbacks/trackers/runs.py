"""Where trackers write: a folder for each run, which is no stage's output and no reason to run one again."""

import os
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any


def project_folder(name: str) -> Path:
    """The folder `name` of the project; an experiment in a copy writes into the main project too."""
    return Path(os.environ.get("DVC_ROOT") or ".") / name


def run_name() -> str:
    """What a run is called: as its experiment, or after the time."""
    return os.environ.get("DVC_EXP_NAME") or f"{datetime.now():%Y-%m-%d-%H%M%S}"


def run_folder(parent: str, memory: dict[str, Any]) -> Path:
    """The run's own folder below `parent` in the project, whose name the callback's memory holds."""
    runs = project_folder(parent)
    if "run" not in memory:
        name = run_name()
        names = chain([name], (f"{name}-{number}" for number in count(2)))
        memory["run"] = next(each for each in names if not (runs / each).exists())
    folder = runs / memory["run"]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
