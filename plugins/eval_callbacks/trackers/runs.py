"""Where trackers write: a folder for each run, which is no stage's output and no reason to run one again."""

import os
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any


def run_folder(parent: str, memory: dict[str, Any]) -> Path:
    """The run's own folder below `parent` in the project, whose name the callback's memory holds.

    It is named after the experiment or the time. An experiment in a copy writes into the main project too.
    """
    runs = Path(os.environ.get("DVC_ROOT") or ".") / parent
    if "run" not in memory:
        name = os.environ.get("DVC_EXP_NAME") or f"{datetime.now():%Y-%m-%d-%H%M%S}"
        names = chain([name], (f"{name}-{number}" for number in count(2)))
        memory["run"] = next(each for each in names if not (runs / each).exists())
    folder = runs / memory["run"]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
