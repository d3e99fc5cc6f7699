"""The hooks: one for each kind of component, each returning a list of component classes.

A hook collects named things and nothing more: registering is inert, and a component works only when
params.yaml names it. So installing a plugin can change no run.
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
    """Corpora: where text comes from. Chosen by `tokenize.corpus.name`."""


@hookspec
def register_models() -> list[type[Model]]:  # type: ignore[empty-body]
    """Models: architectures. Chosen by `model.name`."""


@hookspec
def register_losses() -> list[type[Loss]]:  # type: ignore[empty-body]
    """Losses: what training minimises. Chosen by `train.loss.name`."""


@hookspec
def register_optimizers() -> list[type[Optimizer]]:  # type: ignore[empty-body]
    """Optimizers: how weights follow gradients. Chosen by `train.optimizer.name`."""


@hookspec
def register_schedules() -> list[type[Schedule]]:  # type: ignore[empty-body]
    """Schedules: how the learning rate moves. Chosen by `train.schedule.name`."""


@hookspec
def register_batch_samplers() -> list[type[BatchSampler]]:  # type: ignore[empty-body]
    """Batch samplers: the order of the training data. Chosen by `train.batch_sampler.name`."""


@hookspec
def register_eval_callbacks() -> list[type[EvalCallback]]:  # type: ignore[empty-body]
    """Eval callbacks: what happens after each evaluation. Chosen by `train.eval_callbacks.use`."""


@hookspec
def register_samplers() -> list[type[Sampler]]:  # type: ignore[empty-body]
    """Samplers: changes to the next token's distribution. Chosen by `evaluate.samplers.use`."""


@hookspec
def register_metrics() -> list[type[Metric]]:  # type: ignore[empty-body]
    """Metrics: numbers over held-out text, and tasks. Chosen by `evaluate.metrics.use`."""


@hookspec
def register_exporters() -> list[type[Exporter]]:  # type: ignore[empty-body]
    """Exporters: forms that other programs load. Chosen by `export.formats.use`."""
