"""All that a plugin author needs: `from pipeline.plugin import Loss, hookimpl`."""

from pipeline.plugin.bytelevel import awkward_texts, byte_characters
from pipeline.plugin.components import (
    IGNORED,
    Component,
    Corpus,
    Document,
    EvalCallback,
    EvaluationEvent,
    Exporter,
    ExportSource,
    Loss,
    Metric,
    ModelOutput,
    Optimizer,
    Sampler,
    Schedule,
    StopTraining,
    TaskMetric,
    TextModel,
    TokenScores,
)
from pipeline.plugin.hookspecs import hookimpl

__all__ = [
    "IGNORED",
    "Component",
    "Corpus",
    "Document",
    "EvalCallback",
    "EvaluationEvent",
    "ExportSource",
    "Exporter",
    "Loss",
    "Metric",
    "ModelOutput",
    "Optimizer",
    "Sampler",
    "Schedule",
    "StopTraining",
    "TaskMetric",
    "TextModel",
    "TokenScores",
    "awkward_texts",
    "byte_characters",
    "hookimpl",
]
