"""The numbers in MLflow: in a folder that every run shares, or on a server."""

import os
import sys
import time
from typing import Any, ClassVar

from pipeline.plugin import EvalCallback, EvaluationEvent

from .runs import project_folder, run_name

_FOLDER = ".mlflow"  # ignored by git and DVC: no stage's output, and no reason to run one again
_AT_ONCE = 1000
"""Numbers that MLflow takes in one call."""


class MLflow(EvalCallback):
    """Writes every number to MLflow, in the folder .mlflow or on a server; listed last, the others' too.

    `MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri .mlflow` shows the folder; that is in the package
    mlflow, of which this needs mlflow-skinny only.
    """

    name: ClassVar[str] = "mlflow"
    records_only: ClassVar[bool] = True

    experiment: str = "gpt"
    """The experiment that the run belongs to."""
    uri: str = ""
    """Where to: such as http://localhost:5000, or a folder as file:///…; empty for .mlflow in the project."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Adds the numbers to the run whose id the memory holds.

        What the run holds already, from before it went on from an earlier state, is not written again; what is
        missing is taken from the history. A run that was removed, or is damaged, is begun anew. A server that
        cannot be reached later on stops no run.

        Raises:
            ModuleNotFoundError: the package mlflow-skinny is not installed.
            MlflowException: the first evaluation cannot be written.
        """
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # without it MLflow wants a database, and more packages
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own seven take minutes
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}: install it with pip install -c constraints.txt -e '.[mlflow]'"
            ) from None

        try:
            client = MlflowClient(self.uri or project_folder(_FOLDER).resolve().as_uri())
            try:
                self._add(client, event)
            except MlflowException as error:
                if self.uri and error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                event.memory.pop("run", None)
                self._add(client, event)
        except MlflowException as error:
            if not event.history:
                raise
            print(f"mlflow: {error}: this evaluation is written with the next", file=sys.stderr)
        return {}

    def _add(self, client: Any, event: EvaluationEvent) -> None:
        """Writes what the run does not hold yet."""
        from mlflow.entities import Metric

        if "run" not in event.memory:
            found = client.get_experiment_by_name(self.experiment)
            experiment = found.experiment_id if found else client.create_experiment(self.experiment)
            event.memory["run"] = client.create_run(experiment, run_name=run_name()).info.run_id
        run, now = event.memory["run"], time.time_ns() // 1_000_000
        metrics = []
        for name in event.metrics:
            if name != "step":
                key = name.replace(".", "/", 1)  # what is before a / is a group
                there = {point.step for point in client.get_metric_history(run, key)}
                rows = [row for row in [*event.history, event.metrics] if name in row and row["step"] not in there]
                metrics += [Metric(key, row[name], now, int(row["step"])) for row in rows]
        for first in range(0, len(metrics), _AT_ONCE):
            client.log_batch(run, metrics[first : first + _AT_ONCE])
        client.update_run(run, status="FINISHED" if event.step >= event.total_steps else "RUNNING")
