"""The MLflow tracker."""

import os
import sys
import time
from typing import Any, ClassVar

from pipeline.plugin import EvalCallback, EvaluationEvent

from .runs import project_folder, run_name

_FOLDER = ".mlflow"  # ignored by git and DVC; not an output of a stage
_AT_ONCE = 1000
"""The maximum number of metrics in one call to MLflow."""


class MLflow(EvalCallback):
    """Records all metrics with MLflow, in the folder .mlflow or on a server. List it last to record other
    callbacks' numbers.

    View the folder with `MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri .mlflow` (package mlflow). To
    record, the package mlflow-skinny is enough.
    """

    name: ClassVar[str] = "mlflow"
    records_only: ClassVar[bool] = True

    experiment: str = "gpt"
    """The name of the MLflow experiment."""
    uri: str = ""
    """The tracking URI, such as http://localhost:5000 or file:///…; empty for the project's folder .mlflow."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Adds the metrics to the MLflow run whose id is in the memory.

        After a resume from an earlier checkpoint, metrics that MLflow already has are not written again; missing
        ones are added from the history. If the run was removed or is corrupt, a new one is created. Training
        continues if the server cannot be reached after the first evaluation.

        Raises:
            ModuleNotFoundError: the package mlflow-skinny is not installed.
            MlflowException: the first evaluation cannot be written.
        """
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # otherwise MLflow requires a database and more packages
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default of 7 takes minutes
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
            print(f"mlflow: {error}: will be written at the next evaluation", file=sys.stderr)
        return {}

    def _add(self, client: Any, event: EvaluationEvent) -> None:
        """Writes the metrics that the run does not have yet."""
        from mlflow.entities import Metric

        if "run" not in event.memory:
            found = client.get_experiment_by_name(self.experiment)
            experiment = found.experiment_id if found else client.create_experiment(self.experiment)
            event.memory["run"] = client.create_run(experiment, run_name=run_name()).info.run_id
        run, now = event.memory["run"], time.time_ns() // 1_000_000
        metrics = []
        for name in event.metrics:
            if name != "step":
                key = name.replace(".", "/", 1)  # MLflow groups metrics by the part before /
                there = {point.step for point in client.get_metric_history(run, key)}
                rows = [row for row in [*event.history, event.metrics] if name in row and row["step"] not in there]
                metrics += [Metric(key, row[name], now, int(row["step"])) for row in rows]
        for first in range(0, len(metrics), _AT_ONCE):
            client.log_batch(run, metrics[first : first + _AT_ONCE])
        client.update_run(run, status="FINISHED" if event.step >= event.total_steps else "RUNNING")
