"""Training callbacks and the events that they receive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import torch


class StopTraining(Exception):  # noqa: N818 - a request, not an error
    """Raised by an eval callback to stop training after this evaluation. Its message says why."""


@dataclass(frozen=True, kw_only=True)
class TrainingEvent:
    """What all callback methods receive.

    Attributes:
        step: The number of optimizer steps done; in `before_update`, including the current one.
        total_steps: The number of optimizer steps of the run.
        metrics: The numbers recorded so far for this step or evaluation, such as "val.loss" (nats per token).
        model: The model, in eval mode: `model(ids)` takes ids [B, T] and returns a `ModelOutput`, whose `logits`
            are [B, T, V]. Only `before_update` and `after_step` may change it.
        batches: `batches("train")` or `batches("val")` yields ids [B, T + 1] on the model's device: the windows
            used for evaluation during training, always the same ones. The last id of each window is only a target.
        targets: `targets(side)` yields the targets of the same batches, [B, T]: the next ids, or `IGNORED` for
            tokens that are only read.
        loss: `loss(ids)`, for ids [B, T + 1], returns the negative log-likelihood of each id after the first, in
            nats [B, T], float64, without gradient.
        memory: The callback's state: a dict of plain values and tensors, saved and restored with the run.
    """

    step: int
    total_steps: int
    metrics: Mapping[str, float]
    model: torch.nn.Module
    batches: Callable[[str], Iterator[torch.Tensor]]
    targets: Callable[[str], Iterator[torch.Tensor]]
    loss: Callable[[torch.Tensor], torch.Tensor]
    memory: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent(TrainingEvent):
    """One evaluation during training.

    Attributes:
        history: The metrics of the previous evaluations, oldest first.
        generate: `generate(prompt, max_new_tokens, temperature=0.0)` returns the prompt and its continuation.
        show: `show(text)` prints a text on one line and adds it, unchanged, to the report.
    """

    history: Sequence[Mapping[str, float]]
    generate: Callable[..., str]
    show: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StepEvent(TrainingEvent):
    """One optimizer step.

    The step methods run on every rank, with the same metrics. The parameters of `model` have gradients; with
    `runtime.strategy: fsdp` each rank holds a shard of every parameter and gradient. The random generators are
    seeded from the run's seed and the step.

    Attributes:
        full: `full(tensor)` returns the unsharded parameter or gradient. It is a collective: all ranks must call
            it.
    """

    full: Callable[[torch.Tensor], torch.Tensor]


class EvalCallback(Component):
    """A training callback: it runs after each evaluation or at each step. A subclass overrides one or more of the
    methods; methods that are not overridden cost nothing."""

    records_only: ClassVar[bool] = False
    """Whether the callback only records, as an experiment tracker does. Then it must not return numbers, call
    `event.show` or raise `StopTraining`. It cannot change a result, so a run can be resumed after such a callback
    is added, changed or removed."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Called after each evaluation, on rank 0 only.

        Returns:
            Numbers to record with the metrics of this evaluation; an empty dict for none.

        Raises:
            StopTraining: training should stop after this evaluation.
        """
        return {}

    def before_update(self, event: StepEvent) -> dict[str, float] | None:
        """Called at each step after the gradients of all micro-batches and ranks are summed, before clipping and
        the optimizer step. May change the gradients.

        Returns:
            Numbers for metrics/steps.tsv, or None.
        """

    def after_step(self, event: StepEvent) -> dict[str, float] | None:
        """Called after each optimizer step. May change the weights.

        Returns:
            Numbers for metrics/steps.tsv, or None.
        """

    def eval_weights(self, event: StepEvent) -> Mapping[str, torch.Tensor] | None:
        """The weights to evaluate and publish instead of the trained ones, such as their moving average.

        Training continues with the trained weights. The method must not change the model or the memory, and its
        result must depend only on them.

        Returns:
            Tensors by the names in `event.model.named_parameters()`, or None for the trained weights. Parameters
            that are left out keep the trained weights.
        """

    @classmethod
    def has(cls, method: str) -> bool:
        """Whether the class overrides this method."""
        return getattr(cls, method) is not getattr(EvalCallback, method)


CALLBACK_METHODS = ("on_evaluation", "before_update", "after_step", "eval_weights")
"""The methods that a callback may override."""
