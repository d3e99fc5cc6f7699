"""The hook specifications: one hook per kind of component. A hook returns a list of component classes.

Registering a component has no effect by itself: a component is used only if params.yaml names it. So installing a
plugin cannot change a run.
"""

from __future__ import annotations

import pluggy

from pipeline.plugin.components import (
    BatchSampler,
    Corpus,
    EvalCallback,
    Exporter,
    Loss,
    Metric,
    Model,
    Optimizer,
    Sampler,
    Schedule,
)

PROJECT = "pipeline"
hookimpl = pluggy.HookimplMarker(PROJECT)
hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def register_corpora() -> list[type[Corpus]]:  # type: ignore[empty-body]
    """Corpora: sources of text. Chosen by `tokenize.corpus.name`."""


@hookspec
def register_models() -> list[type[Model]]:  # type: ignore[empty-body]
    """Models: architectures. Chosen by `model.name`."""


@hookspec
def register_losses() -> list[type[Loss]]:  # type: ignore[empty-body]
    """Losses: training objectives. Chosen by `train.loss.name`."""


@hookspec
def register_optimizers() -> list[type[Optimizer]]:  # type: ignore[empty-body]
    """Optimizers: update rules of the weights. Chosen by `train.optimizer.name`."""


@hookspec
def register_schedules() -> list[type[Schedule]]:  # type: ignore[empty-body]
    """Schedules: learning rates by step. Chosen by `train.schedule.name`."""


@hookspec
def register_batch_samplers() -> list[type[BatchSampler]]:  # type: ignore[empty-body]
    """Batch samplers: the order of the training data. Chosen by `train.batch_sampler.name`."""


@hookspec
def register_eval_callbacks() -> list[type[EvalCallback]]:  # type: ignore[empty-body]
    """Eval callbacks: code to run after evaluations and steps. Chosen by `train.eval_callbacks.use`."""


@hookspec
def register_samplers() -> list[type[Sampler]]:  # type: ignore[empty-body]
    """Samplers: changes to the distribution of the next token. Chosen by `evaluate.samplers.use`."""


@hookspec
def register_metrics() -> list[type[Metric]]:  # type: ignore[empty-body]
    """Metrics: numbers over the held-out text, and tasks. Chosen by `evaluate.metrics.use`."""


@hookspec
def register_exporters() -> list[type[Exporter]]:  # type: ignore[empty-body]
    """Exporters: file formats that other programs load. Chosen by `export.formats.use`."""
