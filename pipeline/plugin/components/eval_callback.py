"""Callbacks of training, and the events that they receive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import torch


class StopTraining(Exception):  # noqa: N818 - a request, not an error
    """Raised by an eval callback to end the run here; its text says why."""


@dataclass(frozen=True, kw_only=True)
class TrainingEvent:
    """What a callback is given, whenever it is called.

    Attributes:
        step: Optimizer steps done; in `before_update` the one at hand included.
        total_steps: Optimizer steps the whole run will do.
        metrics: The numbers that are known by now, such as "val.loss" (nats a token).
        model: The model, in eval mode: `model(ids)` takes ids [B, T] and returns a `ModelOutput`, whose `logits`
            are [B, T, V]. Only step methods may change it.
        batches: `batches("train")` or `batches("val")` yields ids [B, T + 1], on the model's device: the windows
            that evaluations during training read, the same ones each time; the last id of each is a target only.
        loss: `loss(ids)` is the plain negative log-likelihood of each id [B, T + 1] after the first, in nats
            [B, T], in float64 and without a gradient.
        memory: This callback's own dict of plain values and tensors; it is saved and restored with the run.
    """

    step: int
    total_steps: int
    metrics: Mapping[str, float]
    model: torch.nn.Module
    batches: Callable[[str], Iterator[torch.Tensor]]
    loss: Callable[[torch.Tensor], torch.Tensor]
    memory: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent(TrainingEvent):
    """One evaluation during training, as a callback sees it.

    Attributes:
        history: The numbers of the earlier evaluations, oldest first.
        generate: `generate(prompt, max_new_tokens, temperature=0.0)` continues a text.
        show: Prints a text and keeps it for the report.
    """

    history: Sequence[Mapping[str, float]]
    generate: Callable[..., str]
    show: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StepEvent(TrainingEvent):
    """One optimizer step, as a callback sees it.

    Every rank calls the step methods with the same numbers. The parameters of `model` have their gradients; with
    `runtime.strategy: fsdp` each rank holds a shard of every parameter and gradient. Random numbers are a function
    of the run's seed and the step.

    Attributes:
        full: `full(tensor)` is all of a parameter or gradient, where ranks hold shards; all ranks must call it.
    """

    full: Callable[[torch.Tensor], torch.Tensor]


class EvalCallback(Component):
    """Something to do during training: after an evaluation, or at each step. It has one of these methods, or more;
    those that it lacks cost nothing."""

    records_only: ClassVar[bool] = False
    """Whether it only writes elsewhere what it is told, as a tracker does: it returns no numbers, does not call
    `event.show`, does not raise `StopTraining`. So it cannot change a result, and adding, changing or removing it
    continues a run."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Returns numbers to record beside the evaluation's (an empty dict for none). Only rank 0 calls it.

        Raises:
            StopTraining: the run should end here.
        """
        return {}

    def before_update(self, event: StepEvent) -> dict[str, float] | None:
        """Is called at each step when the gradients of all micro-batches and ranks are added up, before they are
        clipped and the optimizer steps; may change them. Returns numbers for metrics/steps.tsv."""

    def after_step(self, event: StepEvent) -> dict[str, float] | None:
        """Is called after each optimizer step; may change the weights. Returns numbers for metrics/steps.tsv."""

    def eval_weights(self, event: StepEvent) -> Mapping[str, torch.Tensor] | None:
        """Returns the weights that are evaluated and published in place of the trained ones, by the names of
        `event.model.named_parameters()` (None for the trained ones). Training goes on with its own.

        It must change nothing, and follow from `event.memory` and the model alone.
        """

    @classmethod
    def has(cls, method: str) -> bool:
        """Whether it has this method."""
        return getattr(cls, method) is not getattr(EvalCallback, method)


CALLBACK_METHODS = ("on_evaluation", "before_update", "after_step", "eval_weights")
"""What a callback can do."""
