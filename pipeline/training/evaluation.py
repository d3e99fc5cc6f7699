"""An evaluation during training: losses on fixed windows, the best weights, the callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.console import say
from pipeline.data.batches import EvaluationWindow, TrainingWindows
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids
from pipeline.errors import PipelineError, PluginError, raised_by
from pipeline.evaluation.nll import summarize, undisturbed
from pipeline.model.generate import generate
from pipeline.model.gpt import GPT
from pipeline.plugin.components import EvalCallback, EvaluationEvent, StopTraining
from pipeline.training.state import TrainState


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a run between two steps without disturbing it: random state and train mode are restored.

    Attributes:
        model, optimizer: What is trained.
        data: The training windows, to say which epoch it is.
        tokenizer: For bits per byte and for the callbacks' samples.
        ids: The tokens of "train" and "val".
        windows: The windows of each that are read: always the same, so that evaluations compare.
        batch_size: Windows computed at once.
        windows_at: Training windows seen up to a step.
        total_steps: Steps of the whole run.
        callbacks: What is done after each evaluation.
    """

    model: GPT
    optimizer: torch.optim.Optimizer
    data: TrainingWindows
    tokenizer: Tokenizer
    ids: dict[str, Ids]
    windows: dict[str, Sequence[EvaluationWindow]]
    batch_size: int
    windows_at: Callable[[int], int]
    total_steps: int
    callbacks: Sequence[EvalCallback]

    def __call__(self, state: TrainState) -> None:
        """Adds this step's numbers to the history and the timing, keeps the best weights, runs the callbacks."""
        row = self._measure(state)
        if row["val.loss"] < state.best_loss:
            state.best_step, state.best_loss = state.step, row["val.loss"]
            state.best_weights = {
                name: tensor.detach().to("cpu", copy=True) for name, tensor in self.model.state_dict().items()
            }
        say(
            f"step {state.step:>6,}  train {row['train.loss']:.4f}  val {row['val.loss']:.4f}  "
            f"perplexity {row.get('val.perplexity', float('inf')):.1f}  "
            f"bits/byte {row.get('val.bits_per_byte', float('nan')):.3f}"
        )
        for callback in self.callbacks:
            self._call(callback, row, state)
        state.history.append(row)
        state.timing.append(
            {
                "step": state.step,
                "seconds": state.seconds,
                "processor_seconds": state.processor_seconds,
                "tokens_per_sec": row["tokens"] / state.seconds if state.seconds else 0.0,
            }
        )
        state.objective_nats, state.objective_tokens = 0.0, 0

    def _measure(self, state: TrainState) -> dict[str, float]:
        windows = self.windows_at(state.step)
        row: dict[str, float] = {
            "step": state.step,
            "tokens": windows * self.data.context_length,
            "epoch": windows / self.data.per_epoch,
        }
        if state.objective_tokens:  # steps were taken since the last evaluation
            row["train.objective"] = state.objective_nats / state.objective_tokens
            row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
            row["grad_norm"] = state.grad_norm
        for name in ("train", "val"):
            summary = summarize(
                self.model, self.ids[name], self.windows[name], self.batch_size, self.tokenizer.byte_lengths
            )
            if not math.isfinite(summary.loss):
                raise PipelineError(
                    f"training stopped at step {state.step}: {name}.loss is {summary.loss}: lower the optimizer's "
                    "lr, or set train.grad_clip"
                )
            row |= {f"{name}.{key}": value for key, value in summary.metrics().items()}
        return row

    def _call(self, callback: EvalCallback, row: dict[str, float], state: TrainState) -> None:
        def show(text: str) -> None:
            say(f"        {callback.name}: {text}")
            state.samples.append({"step": state.step, "callback": callback.name, "text": text})

        event = EvaluationEvent(
            step=state.step,
            total_steps=self.total_steps,
            metrics=dict(row),
            history=tuple(dict(earlier) for earlier in state.history),
            generate=self._generate,
            show=show,
            model=self.model,
            memory=state.memory.setdefault(callback.name, {}),
        )
        with undisturbed(self.model):
            try:
                numbers = callback.on_evaluation(event)
            except StopTraining as reason:
                state.stopped = str(reason) or f"{callback.name} stopped the run"
                say(f"stopping at step {state.step}: {state.stopped}")
                return
            except PipelineError:  # such as a prompt that the tokenizer cannot read
                raise
            except Exception as error:
                raise raised_by(f"the eval callback {callback.name!r}, at step {state.step},", error) from error
        _check_numbers(numbers, callback, row)
        row |= {name: float(value) for name, value in numbers.items()}

    def _generate(self, prompt: str, max_new_tokens: int = 50, temperature: float = 0.0) -> str:
        """The prompt and what the model makes of it; temperature 0 takes the likeliest token each time."""
        start = [int(token) for token in self.tokenizer.encode(prompt)]
        if not start:
            start = [self.tokenizer.end_of_text]
        device = self.model.head_weight.device
        generator = torch.Generator(device).manual_seed(0) if temperature > 0 else None
        samplers = [lambda logits, tokens: logits / max(temperature, 1e-6)] if temperature > 0 else []
        with undisturbed(self.model):
            tokens = torch.tensor([start], device=device)
            drawn = [int(each) for each in generate(self.model, tokens, max_new_tokens, samplers, generator)]
        return prompt + self.tokenizer.decode(drawn)


def _check_numbers(numbers: Any, callback: EvalCallback, row: dict[str, float]) -> None:
    where = f"the eval callback {callback.name!r}"
    if not isinstance(numbers, dict):
        raise PluginError(f"{where} must return a dict of numbers (an empty one for none), not {numbers!r}")
    for name, value in numbers.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, int | float):
            raise PluginError(f"{where} returned {name!r}: {value!r}; it must be a name and a number")
        if value != value or abs(value) == float("inf"):
            raise PluginError(f"{where} returned {name!r}: {value}; leave out what is not finite")
        if name in row:
            raise PluginError(f"{where} returned {name!r}, which is already recorded: choose another name")
