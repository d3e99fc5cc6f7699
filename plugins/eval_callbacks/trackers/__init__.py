"""Experiment trackers: they record the metrics of runs, to watch and compare them."""

from pipeline.plugin import EvalCallback, hookimpl

from .dvclive import DVCLive
from .mlflow import MLflow
from .tensorboard import TensorBoard
from .wandb import WandB


@hookimpl
def register_eval_callbacks() -> list[type[EvalCallback]]:
    return [TensorBoard, DVCLive, WandB, MLflow]
