"""The base classes of all plugin components, and the frozen records that their methods receive.

A component is a frozen, stateless pydantic model. `name` is its name in params.yaml. Its fields are its typed,
bounded options, each with a default. Its docstring is its description, and one method does the work.
"""

from pipeline.plugin.components.base import Component
from pipeline.plugin.components.batch_sampler import BatchSampler
from pipeline.plugin.components.corpus import ROLES, Corpus, CorpusSource, Document, Message, Part
from pipeline.plugin.components.eval_callback import (
    CALLBACK_METHODS,
    EvalCallback,
    EvaluationEvent,
    StepEvent,
    StopTraining,
    TrainingEvent,
)
from pipeline.plugin.components.exporter import Exporter, ExportSource
from pipeline.plugin.components.kinds import KINDS, Kind
from pipeline.plugin.components.loss import Loss
from pipeline.plugin.components.metric import (
    Answer,
    Metric,
    Prompt,
    Question,
    TaskMetric,
    TextModel,
    TokenScores,
)
from pipeline.plugin.components.model import IGNORED, Model, ModelOutput, ModelShape
from pipeline.plugin.components.optimizer import Optimizer
from pipeline.plugin.components.sampler import Sampler
from pipeline.plugin.components.schedule import Schedule

__all__ = [
    "CALLBACK_METHODS",
    "IGNORED",
    "KINDS",
    "ROLES",
    "Answer",
    "BatchSampler",
    "Component",
    "Corpus",
    "CorpusSource",
    "Document",
    "EvalCallback",
    "EvaluationEvent",
    "ExportSource",
    "Exporter",
    "Kind",
    "Loss",
    "Message",
    "Metric",
    "Model",
    "ModelOutput",
    "ModelShape",
    "Optimizer",
    "Part",
    "Prompt",
    "Question",
    "Sampler",
    "Schedule",
    "StepEvent",
    "StopTraining",
    "TaskMetric",
    "TextModel",
    "TokenScores",
    "TrainingEvent",
]
