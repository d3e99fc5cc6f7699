"""The public API for plugin authors: `from pipeline.plugin import Loss, hookimpl`."""

from pipeline.plugin.bytelevel import awkward_texts, byte_characters
from pipeline.plugin.components import (
    IGNORED,
    BatchSampler,
    Component,
    Corpus,
    CorpusSource,
    Document,
    EvalCallback,
    EvaluationEvent,
    Exporter,
    ExportSource,
    Loss,
    Metric,
    Model,
    ModelOutput,
    ModelShape,
    Optimizer,
    Sampler,
    Schedule,
    StepEvent,
    StopTraining,
    TaskMetric,
    TextModel,
    TokenScores,
)
from pipeline.plugin.cuts import word_end
from pipeline.plugin.faults import all_of
from pipeline.plugin.hookspecs import hookimpl
from pipeline.plugin.order import IndexedDocument, Source, TokenIndex, permuted
from pipeline.plugin.splits import split_of

__all__ = [
    "IGNORED",
    "BatchSampler",
    "Component",
    "Corpus",
    "CorpusSource",
    "Document",
    "EvalCallback",
    "EvaluationEvent",
    "ExportSource",
    "Exporter",
    "IndexedDocument",
    "Loss",
    "Metric",
    "Model",
    "ModelOutput",
    "ModelShape",
    "Optimizer",
    "Sampler",
    "Schedule",
    "Source",
    "StepEvent",
    "StopTraining",
    "TaskMetric",
    "TextModel",
    "TokenIndex",
    "TokenScores",
    "all_of",
    "awkward_texts",
    "byte_characters",
    "hookimpl",
    "permuted",
    "split_of",
    "word_end",
]
