"""The DVCLive tracker."""

import json
import os
from pathlib import Path
from typing import ClassVar

from pipeline.plugin import EvalCallback, EvaluationEvent

from .runs import run_folder

_FOLDER = ".dvclive"  # ignored by git and DVC; not an output of a stage


class DVCLive(EvalCallback):
    """Records all metrics with DVCLive, in a folder below .dvclive. List it last to record other callbacks'
    numbers."""

    name: ClassVar[str] = "dvclive"
    records_only: ClassVar[bool] = True

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Adds the metrics to the run's folder, whose name is in the memory.

        If the folder does not end with the previous evaluation (the run resumed from an earlier checkpoint, or the
        folder was removed), it is rewritten from the history, so that no row is duplicated or missing.

        Raises:
            ModuleNotFoundError: the package dvclive is not installed.
        """
        try:
            from dvclive import Live
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}: install it with pip install -c constraints.txt -e '.[dvclive]'"
            ) from None

        folder = run_folder(_FOLDER, event.memory)
        going_on = _step(folder) == (event.history[-1]["step"] if event.history else None)

        os.environ["DVC_STUDIO_OFFLINE"] = "true"  # each Live object would start a new run in DVC Studio
        live = Live(str(folder), resume=going_on, save_dvc_exp=False, dvcyaml=False)
        live.step = event.step
        live.make_summary()  # first, so that an incomplete folder is not mistaken for the previous evaluation
        for row in [event.metrics] if going_on else [*event.history, event.metrics]:
            live.step = int(row["step"])
            for name in event.metrics:
                if name != "step" and name in row:
                    live.log_metric(name.replace(".", "/", 1), row[name])
        live.make_summary()
        return {}


def _step(folder: Path) -> int | None:
    """The last step in a folder; None if there is none or its file is corrupt."""
    try:
        step: int = json.loads((folder / "metrics.json").read_text())["step"]
    except (OSError, ValueError, KeyError):
        return None
    return step
