"""The table of component kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.plugin.components.base import Component
from pipeline.plugin.components.batch_sampler import BatchSampler
from pipeline.plugin.components.corpus import Corpus
from pipeline.plugin.components.eval_callback import EvalCallback
from pipeline.plugin.components.exporter import Exporter
from pipeline.plugin.components.loss import Loss
from pipeline.plugin.components.metric import Metric
from pipeline.plugin.components.model import Model
from pipeline.plugin.components.optimizer import Optimizer
from pipeline.plugin.components.sampler import Sampler
from pipeline.plugin.components.schedule import Schedule


@dataclass(frozen=True)
class Kind:
    """A kind of component.

    Attributes:
        singular, plural: Its names. The plural is the name of its folder in plugins/, and its hook is
            register_PLURAL.
        base: The base class of its components.
        chosen_by: The key of params.yaml that selects a component.
        optional_arguments: Keyword arguments that the component's method receives if it has parameters of these
            names.
    """

    singular: str
    plural: str
    base: type[Component]
    chosen_by: str
    optional_arguments: tuple[str, ...] = ()

    @property
    def hook(self) -> str:
        return f"register_{self.plural}"


KINDS: Mapping[str, Kind] = {
    kind.plural: kind
    for kind in (
        Kind("corpus", "corpora", Corpus, "tokenize.corpus.name"),
        Kind("model", "models", Model, "model.name"),
        Kind("loss", "losses", Loss, "train.loss.name", ("inputs", "step", "total_steps", "teacher")),
        Kind("optimizer", "optimizers", Optimizer, "train.optimizer.name", ("total_steps",)),
        Kind("schedule", "schedules", Schedule, "train.schedule.name"),
        Kind("batch sampler", "batch_samplers", BatchSampler, "train.batch_sampler.name", ("total_samples",)),
        Kind("eval callback", "eval_callbacks", EvalCallback, "train.eval_callbacks.use"),
        Kind("sampler", "samplers", Sampler, "evaluate.samplers.use", ("prompt_length", "memory")),
        Kind("metric", "metrics", Metric, "evaluate.metrics.use"),
        Kind("exporter", "exporters", Exporter, "export.formats.use"),
    )
}
