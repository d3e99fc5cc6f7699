"""The numbers in DVCLive's files, while the run trains and beside those of other runs."""

import json
import os
from pathlib import Path
from typing import ClassVar

from pipeline.plugin import EvalCallback, EvaluationEvent

from .runs import run_folder

_FOLDER = ".dvclive"  # ignored by git and DVC: no stage's output, and no reason to run one again


class DVCLive(EvalCallback):
    """Writes every number as DVCLive does, in a folder below .dvclive; listed last, the others' too."""

    name: ClassVar[str] = "dvclive"
    records_only: ClassVar[bool] = True

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Adds the numbers to the run's folder, whose name the memory holds.

        A folder that is not at the evaluation before this one (the run resumed from an earlier state, or the
        folder was removed) is written anew from the history: no row is there twice, and none is missing.

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

        os.environ["DVC_STUDIO_OFFLINE"] = "true"  # each Live would announce another run there
        live = Live(str(folder), resume=going_on, save_dvc_exp=False, dvcyaml=False)
        live.step = event.step
        live.make_summary()  # first: a folder that is left half written is not taken for the evaluation before
        for row in [event.metrics] if going_on else [*event.history, event.metrics]:
            live.step = int(row["step"])
            for name in event.metrics:
                if name != "step" and name in row:
                    live.log_metric(name.replace(".", "/", 1), row[name])
        live.make_summary()
        return {}


def _step(folder: Path) -> int | None:
    """The last step that a folder holds; None where it holds none, or damaged ones."""
    try:
        step: int = json.loads((folder / "metrics.json").read_text())["step"]
    except (OSError, ValueError, KeyError):
        return None
    return step
