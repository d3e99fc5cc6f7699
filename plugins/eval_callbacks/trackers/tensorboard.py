"""Curves in TensorBoard, while the run trains and beside those of other runs."""

import os
import time
from typing import ClassVar

from pipeline.plugin import EvalCallback, EvaluationEvent

from .runs import run_folder

_FOLDER = ".tensorboard"  # ignored by git and DVC: no stage's output, and no reason to run one again
_FILE = "events.out.tfevents.train"


class TensorBoard(EvalCallback):
    """Writes every number as a curve for `tensorboard --logdir .tensorboard`; listed last, the others' too."""

    name: ClassVar[str] = "tensorboard"
    records_only: ClassVar[bool] = True

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Adds the numbers to the run's file.

        The memory holds the run's folder and how long the file was. A run that resumes from an earlier state,
        which remembers a shorter file, cuts off what is to be written again: no point is there twice.

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
            Summary.Value(tag=name.replace(".", "/", 1), simple_value=number)  # what is before a / is a group
            for name, number in event.metrics.items()
            if name != "step"  # the axis
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
