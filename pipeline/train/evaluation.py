"""An evaluation during training: losses on fixed windows, the best weights, the callbacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pipeline.core.console import say
from pipeline.core.errors import PipelineError, PluginError, out_of_memory, raised_by
from pipeline.data.batches import EvaluationWindow, TrainingWindows
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import Ids
from pipeline.model.generate import generate
from pipeline.model.gpt import GPT
from pipeline.model.scoring import Summary, score, undisturbed
from pipeline.plugin.components import EvalCallback, EvaluationEvent, StopTraining
from pipeline.train.interrupt import StopSignal
from pipeline.train.length import Length
from pipeline.train.parallel import Parallel
from pipeline.train.state import TrainState


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a run between two steps without disturbing it: random state and train mode are restored.

    Attributes:
        parallel: The model that is trained; its ranks share the windows, the first one calls the callbacks.
        optimizer: For the learning rate.
        data: The training windows, to say which epoch it is.
        tokenizer: For bits per byte and for the callbacks' samples.
        ids: The tokens of "train" and "val".
        windows: The windows of each that are read: always the same, so that evaluations compare.
        batch_size: Windows computed at once.
        length: How long the run is.
        callbacks: What is done after each evaluation.
        stop: Asked between batches and between generated tokens.
    """

    parallel: Parallel
    optimizer: torch.optim.Optimizer
    data: TrainingWindows
    tokenizer: Tokenizer
    ids: dict[str, Ids]
    windows: dict[str, Sequence[EvaluationWindow]]
    batch_size: int
    length: Length
    callbacks: Sequence[EvalCallback]
    stop: StopSignal

    def __call__(self, state: TrainState) -> None:
        """Adds this step's numbers to the history and the timing, keeps the best weights, runs the callbacks.

        Raises:
            Stopping: the run was asked to stop; `state` is as it was before.
        """
        draft = state.draft()
        with self.parallel.eager():
            row = self._measure(draft)
            if row["val.loss"] < draft.best_loss:
                draft.best_step, draft.best_loss = draft.step, row["val.loss"]
                draft.best_weights = self.parallel.to_cpu(self.parallel.model.state_dict())
            say(
                f"step {draft.step:>6,}  train {row['train.loss']:.4f}  val {row['val.loss']:.4f}  "
                f"perplexity {row.get('val.perplexity', float('inf')):.1f}  "
                f"bits/byte {row.get('val.bits_per_byte', float('nan')):.3f}"
            )
            if self.callbacks:
                model = self.parallel.full_model()
                row, draft.stopped = self.parallel.ranks.on_rank0(lambda: self._call_all(model, row, draft))
        draft.history.append(row)
        draft.timing.append(
            {
                "step": draft.step,
                "seconds": draft.seconds,
                "processor_seconds": draft.processor_seconds,
                "tokens_per_sec": row["tokens"] / draft.seconds if draft.seconds else 0.0,
            }
        )
        draft.objective_nats, draft.objective_tokens = 0.0, 0
        state.adopt(draft)

    def summarize(self, name: str, windows: Sequence[EvaluationWindow]) -> Summary:
        """Scores windows of "train" or "val"; each rank takes every so-many-th batch of them."""
        ranks, model, size = self.parallel.ranks, self.parallel.model, self.batch_size
        batches = [windows[start : start + size] for start in range(0, len(windows), size)]
        summary = Summary(self.tokenizer.byte_lengths)
        for first in range(0, len(batches), ranks.count):
            self.stop.check(ranks)
            number = first + ranks.rank
            # A rank that has none left computes along: weights that are spread over the ranks need all of them.
            for scores in score(model, self.ids[name], batches[min(number, len(batches) - 1)], size):
                if number < len(batches):
                    summary.add(scores)
        return summary.over(ranks.all_reduce_sum)

    def _measure(self, state: TrainState) -> dict[str, float]:
        windows = self.length.windows_before(state.step)
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
            summary = self.summarize(name, self.windows[name])
            if not math.isfinite(summary.loss):
                raise PipelineError(
                    f"training stopped at step {state.step}: {name}.loss is {summary.loss}: lower the optimizer's "
                    "lr, or set train.grad_clip"
                )
            row |= {f"{name}.{key}": value for key, value in summary.metrics().items()}
        return row

    def _call_all(
        self, model: GPT | None, row: dict[str, float], state: TrainState
    ) -> tuple[dict[str, float], str]:
        """The row with the callbacks' numbers, and why one of them ends the run, if one does."""
        assert model is not None  # this is the first rank
        row = dict(row)
        for callback in self.callbacks:
            self._call(callback, model, row, state)
        return row, state.stopped

    def _call(self, callback: EvalCallback, model: GPT, row: dict[str, float], state: TrainState) -> None:
        def show(text: str) -> None:
            say(f"        {callback.name}: {text}")
            state.samples.append({"step": state.step, "callback": callback.name, "text": text})

        memory = state.memory.setdefault(callback.name, {})
        event = EvaluationEvent(
            step=state.step,
            total_steps=self.length.total_steps,
            metrics=dict(row),
            history=tuple(dict(earlier) for earlier in state.history),
            generate=partial(self._generate, model),
            show=show,
            model=model,
            memory=memory,
        )
        self.stop.check()
        with undisturbed(model):
            try:
                numbers = callback.on_evaluation(event)
            except StopTraining as reason:
                state.stopped = str(reason) or f"{callback.name} stopped the run"
                say(f"stopping at step {state.step}: {state.stopped}")
                numbers = {}
            except PipelineError:  # such as a prompt that the tokenizer cannot read
                raise
            except Exception as error:
                if out_of_memory(error):
                    raise
                raise raised_by(f"the eval callback {callback.name!r}, at step {state.step},", error) from error
        _check_numbers(numbers, callback, row)
        _check_memory(memory, callback)
        row |= {name: float(value) for name, value in numbers.items()}

    def _generate(self, model: GPT, prompt: str, max_new_tokens: int = 50, temperature: float = 0.0) -> str:
        """The prompt and what the model makes of it; temperature 0 takes the likeliest token each time."""
        start = [int(token) for token in self.tokenizer.encode(prompt)]
        if not start:
            start = [self.tokenizer.end_of_text]
        device = model.head_weight.device
        generator = torch.Generator(device).manual_seed(0) if temperature > 0 else None
        samplers = [lambda logits, tokens: logits / max(temperature, 1e-6)] if temperature > 0 else []
        drawn = []
        with undisturbed(model):
            for token in generate(model, torch.tensor([start], device=device), max_new_tokens, samplers, generator):
                self.stop.check()
                drawn.append(int(token))
        return prompt + self.tokenizer.decode(drawn)


_PLAIN = (str, bytes, bool, int, float, type(None), torch.Tensor)


def _check_memory(memory: Any, callback: EvalCallback) -> None:
    """What is no plain value could not be loaded again without running code."""
    if isinstance(memory, dict):
        for each in (*memory.keys(), *memory.values()):
            _check_memory(each, callback)
    elif type(memory) in (list, tuple):
        for each in memory:
            _check_memory(each, callback)
    elif type(memory) not in _PLAIN:
        raise PluginError(
            f"the eval callback {callback.name!r} keeps a {type(memory).__name__} in its memory, which a saved "
            "state cannot hold: keep numbers, texts, tensors, lists and dicts of them"
        )


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
