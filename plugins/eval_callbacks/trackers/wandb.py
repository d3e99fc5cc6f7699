"""The Weights & Biases tracker."""

import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

from pipeline.plugin import EvalCallback, EvaluationEvent

from .runs import run_folder

_FOLDER = ".wandb"  # ignored by git and DVC; not an output of a stage
_LAST = "last-step"


class WandB(EvalCallback):
    """Records all metrics with Weights & Biases, in a folder below .wandb. List it last to record other callbacks'
    numbers.

    Offline, nothing leaves the machine until you run `wandb sync .wandb/RUN/wandb/offline-run-*`.
    """

    name: ClassVar[str] = "wandb"
    records_only: ClassVar[bool] = True

    project: str = "gpt"
    """The name of the W&B project."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` only writes files; `online` also sends them to the server (run `wandb login` first)."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Adds the metrics to the W&B run whose id is in the memory.

        A file in the run's folder has the last step that was written. After a resume from an earlier checkpoint,
        steps up to it are not written again; missing ones are added from the history. Training continues if the
        server cannot be reached after the first evaluation.

        Raises:
            ModuleNotFoundError: the package wandb is not installed.
            wandb.Error: the first evaluation cannot be sent.
        """
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}: install it with pip install -c constraints.txt -e '.[wandb]'"
            ) from None

        folder = run_folder(_FOLDER, event.memory).resolve()  # wandb's process may have another working directory
        try:
            run = self._open(wandb, folder, event.memory)
        except wandb.Error as error:
            if not event.history:
                raise
            print(f"wandb: {error}: will be sent at the next evaluation", file=sys.stderr)
            return {}
        marker = folder / _LAST
        last = int(marker.read_text()) if marker.exists() else -1
        for row in [*event.history, event.metrics]:
            if row["step"] > last:
                numbers = {name.replace(".", "/", 1): row[name] for name in row if name != "step"}
                run.log(numbers, step=int(row["step"]))
        new = folder / f"{_LAST}.new"
        new.write_text(str(max(last, event.step)))
        new.replace(marker)  # atomic: complete even if the run is killed
        if event.step >= event.total_steps:
            run.finish()
        return {}

    def _open(self, wandb: Any, folder: Path, memory: dict[str, Any]) -> Any:
        """The open W&B run, or a newly opened one. All files of wandb are in the run's folder."""
        run = wandb.run
        if run is not None and run.id == memory.get("id") and Path(run.dir).exists():
            return run
        if run is not None:
            run.finish()
        for directory in ("CACHE", "DATA", "ARTIFACT", *(["CONFIG"] if self.mode == "offline" else [])):
            os.environ[f"WANDB_{directory}_DIR"] = str(folder)
        memory.setdefault("id", uuid4().hex[:8])
        while any(folder.glob(f"wandb/*{datetime.now():%Y%m%d_%H%M%S}*")):
            time.sleep(
                0.1
            )  # wandb names its folders by the second; wait, so that the previous one is not overwritten
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True,
            x_disable_meta=True, init_timeout=30, finish_timeout=60,
        )  # fmt: skip
        return wandb.init(
            project=self.project, name=folder.name, id=memory["id"], dir=str(folder), mode=self.mode,
            resume="allow" if self.mode == "online" else None, settings=settings,
        )  # fmt: skip
