"""The numbers in Weights & Biases: in files beside the run, or on a server."""

import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

from pipeline.plugin import EvalCallback, EvaluationEvent

from .runs import run_folder

_FOLDER = ".wandb"  # ignored by git and DVC: no stage's output, and no reason to run one again
_LAST = "last-step"


class WandB(EvalCallback):
    """Writes every number for Weights & Biases, in a folder below .wandb; listed last, the others' too.

    Offline nothing leaves the machine, until `wandb sync .wandb/RUN/wandb/offline-run-*` sends it.
    """

    name: ClassVar[str] = "wandb"
    records_only: ClassVar[bool] = True

    project: str = "gpt"
    """The project that the run belongs to."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` writes files only; `online`, after `wandb login`, also sends them as they are written."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Adds the numbers to the run whose id the memory holds.

        A file beside the run tells the last step that was written. A run that resumes from an earlier state comes
        by the same numbers again, and leaves them out; what is missing is taken from the history. A server that
        cannot be reached later on stops no run.

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

        folder = run_folder(_FOLDER, event.memory).resolve()  # wandb's own process may be in another one
        try:
            run = self._open(wandb, folder, event.memory)
        except wandb.Error as error:
            if not event.history:
                raise
            print(f"wandb: {error}: this evaluation is sent with the next", file=sys.stderr)
            return {}
        marker = folder / _LAST
        last = int(marker.read_text()) if marker.exists() else -1
        for row in [*event.history, event.metrics]:
            if row["step"] > last:
                numbers = {name.replace(".", "/", 1): row[name] for name in row if name != "step"}
                run.log(numbers, step=int(row["step"]))
        new = folder / f"{_LAST}.new"
        new.write_text(str(max(last, event.step)))
        new.replace(marker)  # whole, whenever the run is killed
        if event.step >= event.total_steps:
            run.finish()
        return {}

    def _open(self, wandb: Any, folder: Path, memory: dict[str, Any]) -> Any:
        """The run that this process has open, or opens; all that wandb writes is in the run's folder."""
        run = wandb.run
        if run is not None and run.id == memory.get("id") and Path(run.dir).exists():
            return run
        if run is not None:
            run.finish()
        for place in ("CACHE", "DATA", "ARTIFACT", *(["CONFIG"] if self.mode == "offline" else [])):
            os.environ[f"WANDB_{place}_DIR"] = str(folder)
        memory.setdefault("id", uuid4().hex[:8])
        while any(folder.glob(f"wandb/*{datetime.now():%Y%m%d_%H%M%S}*")):
            time.sleep(0.1)  # wandb names its folders after the second, and would write over the last one's
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True,
            x_disable_meta=True, init_timeout=30, finish_timeout=60,
        )  # fmt: skip
        return wandb.init(
            project=self.project, name=folder.name, id=memory["id"], dir=str(folder), mode=self.mode,
            resume="allow" if self.mode == "online" else None, settings=settings,
        )  # fmt: skip
