"""The live line of training: the recent speed, the time left, the last losses, and what the run waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from pipeline.core.console import Progress
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState


class TrainingProgress(Progress):
    """Shows steps, tokens a second and the last losses, and says when it evaluates or torch compiles."""

    def __init__(self, run: TrainingRun, state: TrainState) -> None:
        self._run, self._evaluation_seconds = run, 0.0
        self._tokens = self._tokens_before(state.step)
        left = self._tokens_before(run.total_steps) - self._tokens
        super().__init__("training", "step", run.total_steps, state.step, work_unit="token", work_total=left)
        self._show_validation(state)

    def __enter__(self) -> Self:
        super().__enter__()
        if self._run.parallel.compiled:
            self._exit.enter_context(_told_of_compiling(self))
        return self

    def stepped(self, state: TrainState, loss: float | None) -> None:
        """Counts the step that `state` has taken; `loss` is what the last step that was read optimised, in nats per
        token, or None if none was read yet."""
        before, self._tokens = self._tokens, self._tokens_before(state.step)
        self.update(1, work=self._tokens - before, **({} if loss is None else {"loss": _loss(loss)}))

    @contextmanager
    def evaluating(self, state: TrainState) -> Iterator[None]:
        """Around an evaluation."""
        started = time.monotonic()
        with self.waiting("evaluating"):
            yield
        self._evaluation_seconds = time.monotonic() - started
        self._show_validation(state)

    def seconds_left(self) -> float | None:
        """The time for the steps that are left, and for the evaluations."""
        seconds = super().seconds_left()
        if seconds is None:
            return None
        every, total = self._run.params.evaluation.every, self._run.total_steps
        evaluations = -(-total // every) - self._done // every
        return seconds + evaluations * self._evaluation_seconds

    def _show_validation(self, state: TrainState) -> None:
        if state.history:
            self.show(val=_loss(state.history[-1]["val.loss"]))

    def _tokens_before(self, step: int) -> int:
        return self._run.length.windows_before(step) * self._run.data.windows.context_length


def _loss(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


@contextmanager
def _told_of_compiling(progress: Progress) -> Iterator[None]:
    """Inside, `progress` says when torch compiles: in the first step, and wherever a shape is new to it."""
    from torch._dynamo.callback import callback_handler

    def starts(*_: object) -> None:
        progress.wait("compiling")

    def ends(*_: object) -> None:
        progress.go_on()

    callback_handler.register_start_callback(starts)
    callback_handler.register_end_callback(ends)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(starts)
        callback_handler.remove_end_callback(ends)
