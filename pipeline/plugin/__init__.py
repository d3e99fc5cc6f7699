"""All that a plugin author needs: `from pipeline.plugin import Loss, hookimpl`."""

from pipeline.plugin.bytelevel import awkward_texts, byte_characters
from pipeline.plugin.components import (
    IGNORED,
    BatchSampler,
    Component,
    Corpus,
    Document,
    EvalCallback,
    EvaluationEvent,
    Exporter,
    ExportSource,
    Loss,
    ModelOutput,
    Optimizer,
    Sampler,
    Schedule,
    StepEvent,
    StopTraining,
)
from pipeline.plugin.hookspecs import hookimpl
from pipeline.plugin.order import IndexedDocument, Source, TokenIndex, permuted

__all__ = [
    "IGNORED",
    "BatchSampler",
    "Component",
    "Corpus",
    "Document",
    "EvalCallback",
    "EvaluationEvent",
    "ExportSource",
    "Exporter",
    "IndexedDocument",
    "Loss",
    "ModelOutput",
    "Optimizer",
    "Sampler",
    "Schedule",
    "Source",
    "StepEvent",
    "StopTraining",
    "TokenIndex",
    "awkward_texts",
    "byte_characters",
    "hookimpl",
    "permuted",
]
