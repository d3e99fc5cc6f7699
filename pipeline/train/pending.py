"""The numbers of a step, read, checked and recorded: at once, or on a GPU one step late, so that it never waits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pipeline.core.console import say
from pipeline.core.errors import PipelineError
from pipeline.model.device import float64_device
from pipeline.plugin.calls import label
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState

_SMALLEST_SCALE = 1.0
"""The loss scale of fp16 below which something else than an overflow is wrong (torch's advice)."""


@dataclass(frozen=True)
class StepNumbers:
    """The loss and the gradient's norm of a step, on their way to the host.

    Attributes:
        row: The step's row of metrics/steps.tsv, so far.
        tokens: The number of its targets, over all ranks.
    """

    row: dict[str, float]
    tokens: int
    _numbers: torch.Tensor
    _arrived: torch.cuda.Event | None = None

    @classmethod
    def sent(
        cls, row: dict[str, float], tokens: int, losses: Sequence[torch.Tensor], norm: torch.Tensor
    ) -> StepNumbers:
        """Starts to copy this rank's losses and the norm, scalars on the device, to the host."""
        exact = float64_device(norm.device)
        numbers = torch.stack([each.to(exact).double() for each in (*losses, norm)])
        if numbers.device.type != "cuda":
            return cls(row, tokens, numbers)
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(numbers.device))
        return cls(row, tokens, host, arrived)

    def read(self) -> tuple[float, float]:
        """This rank's loss in nats, and the norm. Waits until the device has computed them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        *losses, norm = self._numbers.tolist()
        return sum(losses), norm


@dataclass
class Pending:
    """The numbers of the last step, until they are read.

    If the run reads them late (`TrainingRun.reads_late`), a step's numbers are read after the next one was started.
    So the weights may already be useless when the loss turns out not to be finite: `settle` must come before
    anything that uses or keeps them, such as an evaluation or a save.

    Attributes:
        nats, tokens: The loss and the number of targets of the last step that was read; NaN and 0 before the first.
    """

    run: TrainingRun
    state: TrainState
    nats: float = math.nan
    tokens: int = 0
    _numbers: StepNumbers | None = field(default=None, init=False)

    def good(self, numbers: StepNumbers) -> bool:
        """Whether a step may change the weights. A step that is read late may: nothing is known of it yet.

        Raises:
            PipelineError: its numbers are not finite, and no further step may be skipped.
        """
        return self.run.reads_late or self._check(numbers)

    def record(self, numbers: StepNumbers) -> None:
        """Records a good step; one that is read late is kept, and the one before it settled."""
        if self.run.reads_late:
            self.settle()
            self._numbers = numbers
        else:
            self._log(numbers.row)

    def settle(self) -> None:
        """Reads and records the step that is kept, if any. All ranks must call it.

        Raises:
            PipelineError: its numbers are not finite.
        """
        numbers, self._numbers = self._numbers, None
        if numbers is not None and self._check(numbers):
            self._log(numbers.row)

    def _check(self, numbers: StepNumbers) -> bool:
        """Whether a step's numbers are finite; then adds them to the state and the step's row."""
        nats, norm = numbers.read()
        (self.nats,), self.tokens = self.run.parallel.ranks.all_reduce_sum(nats), numbers.tokens
        if math.isfinite(self.nats) and math.isfinite(norm):
            self.state.objective_nats += self.nats
            self.state.objective_tokens += numbers.tokens
            self.state.grad_norm = norm
            numbers.row.update({"train.objective": self.nats / max(numbers.tokens, 1), "grad_norm": norm})
            return True
        what = f"the gradient's norm is {norm}" if math.isfinite(self.nats) else f"the loss is {self.nats}"
        if math.isfinite(self.nats) and self.run.scaler.is_enabled():
            scale = self.run.scaler.get_scale()
            if scale >= _SMALLEST_SCALE:
                return False  # an overflow: the scaler skips the step, and lowers the scale
            what += f", although the loss is only scaled by {scale:.3g}"
        self._skip_or_stop(int(numbers.row["step"]) - 1, what)
        return False

    def _log(self, row: dict[str, float]) -> None:
        """Records the numbers of the first step and of every `train.log_every`-th step."""
        run, every, step = self.run, self.run.params.log_every, int(row["step"])
        if every and (step == 1 or step % every == 0):
            tokens = run.length.windows_before(step) * run.data.windows.context_length
            measured = {name: row[name] for name in ("train.objective", "learning_rate", "grad_norm")}
            self.state.steps.append({"step": step, "tokens": tokens, **measured, **row})  # callbacks' numbers last
            if run.parallel.ranks.is_rank0:
                run.live.update(self.state.steps)

    def _skip_or_stop(self, step: int, what: str) -> None:
        """Records a step that is skipped because of `what`; raises PipelineError if there were too many."""
        run, skipped = self.run, self.state.skipped
        factor = run.phase.schedule(step)
        rates = ", ".join(f"{group['initial_lr'] * factor:.3g}" for group in run.optimizer.param_groups)
        where = f"learning rate {rates}; windows at tokens {_listed(run.offsets(step))} of the training split"
        if len(skipped) >= run.params.skip_bad_steps:
            so_far = f", after {len(skipped)} skipped steps" if skipped else ""
            raise PipelineError(
                f"training stopped at step {step}{so_far}: {what} ({where}; {label(run.components.loss)}): "
                "lower the optimizer's lr, set train.grad_clip, or raise train.skip_bad_steps"
            )
        skipped.append({"step": step, "why": what, "where": where})
        say(f"step {step:>6,}  skipped ({len(skipped)} of at most {run.params.skip_bad_steps}): {what} ({where})")


def _listed(values: list[int]) -> str:
    shown = ", ".join(str(value) for value in values[:8])
    return shown + (f" and {len(values) - 8} more" if len(values) > 8 else "")
