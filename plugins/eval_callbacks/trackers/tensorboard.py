"""The TensorBoard tracker."""

import os
import time
from typing import ClassVar

from pipeline.plugin import EvalCallback, EvaluationEvent

from .runs import run_folder

_FOLDER = ".tensorboard"  # ignored by git and DVC; not an output of a stage
_FILE = "events.out.tfevents.train"


class TensorBoard(EvalCallback):
    """Records all metrics for `tensorboard --logdir .tensorboard`. List it last to record other callbacks'
    numbers."""

    name: ClassVar[str] = "tensorboard"
    records_only: ClassVar[bool] = True

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Adds the metrics to the run's event file.

        The memory has the name of the run's folder and the length of the file. A run that resumes from an earlier
        checkpoint truncates the file to the length in its memory, so that no point is duplicated.

        Raises:
            ModuleNotFoundError: the package tensorboard is not installed.
        """
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}: install it with pip install -c constraints.txt -e '.[tensorboard]'"
            ) from None

        now, memory = time.time(), event.memory
        values = [
            Summary.Value(
                tag=name.replace(".", "/", 1), simple_value=number
            )  # TensorBoard groups tags by the part before /
            for name, number in event.metrics.items()
            if name != "step"  # the x axis
        ]
        path = run_folder(_FOLDER, memory) / _FILE
        with path.open("ab") as file:
            file.truncate(min(file.tell(), memory.get("bytes", 0)))
            writer = RecordWriter(file)
            if os.fstat(file.fileno()).st_size == 0:
                writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            summary = Summary(value=values)
            writer.write(Event(wall_time=now, step=event.step, summary=summary).SerializeToString())
        memory["bytes"] = path.stat().st_size
        return {}
