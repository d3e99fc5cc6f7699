"""Negative log-likelihood, token by token, and the numbers that follow from it.

Every number that compares runs (loss, perplexity, bits per byte) comes from here: the plain cross-entropy
of the true next token, whatever loss the run was trained with. Sums are in float64 and over tokens, so a
result is no average of averages, and the batch size does not change it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline.data.batches import EvaluationWindow
from pipeline.data.tokens import Ids
from pipeline.model.architecture import LanguageModel, checked_forward
from pipeline.model.device import device_of, float64_device
from pipeline.plugin.components import IGNORED, ModelOutput

_LOGITS_AT_ONCE = 1 << 23
_MAX_EXPONENT = 709.0


@dataclass(frozen=True)
class Scores:
    """How well each target was predicted; the arrays are as long as there are targets.

    Attributes:
        targets: The true ids.
        nats: Their negative log-likelihoods, float64.
        correct: Whether the likeliest token was the true one.
    """

    targets: np.ndarray[tuple[int], np.dtype[np.int64]]
    nats: np.ndarray[tuple[int], np.dtype[np.float64]]
    correct: np.ndarray[tuple[int], np.dtype[np.bool_]]


Observer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called with the targets of some rows [N], `IGNORED` ones included, their nats, whether they were the likeliest,
the likeliest token's probability (float64), and the logits [N, V] in float32 (or wider); the rows come in order. It
must not change them, nor keep them."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model in eval mode and, afterwards, its mode and every random generator as they were."""
    training = model.training
    kind = torch.accelerator.current_accelerator(check_available=True)
    devices = range(torch.accelerator.device_count()) if kind else []
    python, numpy = random.getstate(), np.random.get_state()
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices, device_type=kind.type if kind else "cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        model.train(training)


@torch.no_grad()  # no inference mode: FSDP2 keeps buffers of its first forward, and training writes into them
def score(
    model: LanguageModel,
    ids: Ids,
    windows: Sequence[EvaluationWindow],
    batch_size: int,
    observe: Observer | None = None,
) -> Iterator[Scores]:
    """Scores the windows' counted targets, in order, a batch at a time; in float32, without dropout.

    `observe` sees the logits of a batch before its scores are yielded; it does not change the scores.
    """
    device = device_of(model)
    with evaluating(model):
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            inputs, targets = _padded(ids, batch)
            counted = targets != IGNORED
            output = checked_forward(model, torch.from_numpy(inputs).to(device))
            nats, correct = score_tokens(output, torch.from_numpy(targets).to(device), observe)
            yield Scores(targets[counted], nats.cpu().numpy()[counted], correct.cpu().numpy()[counted])


def _padded(ids: Ids, windows: Sequence[EvaluationWindow]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets [B, T]; shorter windows are filled up on the right, where causality hides it."""
    length = max(window.end - window.start for window in windows) - 1
    inputs = np.zeros((len(windows), length), dtype=np.int64)
    targets = np.full((len(windows), length), IGNORED, dtype=np.int64)
    for row, window in enumerate(windows):
        tokens = ids[window.start : window.end].astype(np.int64)
        inputs[row, : len(tokens) - 1] = tokens[:-1]
        targets[row, len(tokens) - 1 - window.counted : len(tokens) - 1] = tokens[-window.counted :]
    return inputs, targets


def score_tokens(
    output: ModelOutput, targets: torch.Tensor, observe: Observer | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each target's −log p(target) in float64 nats, and whether it was the likeliest token, both [B, T].

    Of equally likely tokens the first one is the likeliest. Ignored targets get 0 nats. The logits are computed
    some rows at a time, so that a large vocabulary never fills the memory; `observe` sees each of these parts.
    The results, and what `observe` sees, are on `float64_device`: of an Apple GPU, on the CPU.
    """
    hidden = output.hidden.flatten(0, 1)
    flat = targets.flatten()
    exact = float64_device(flat.device)
    nats = torch.zeros(flat.shape, dtype=torch.float64, device=exact)
    correct = torch.zeros(flat.shape, dtype=torch.bool, device=exact)
    rows = max(1, _LOGITS_AT_ONCE // output.vocab_size)
    for start in range(0, len(flat), rows):
        chunk = flat[start : start + rows]
        logits = ModelOutput(hidden[start : start + rows], output.head_weight, output.vocab_size).logits
        counted = chunk != IGNORED
        picked = logits.gather(1, chunk.clamp(min=0)[:, None])[:, 0]
        largest = logits.amax(dim=-1)
        hits = (counted & (picked == largest)).nonzero()[:, 0]
        # argmax is slow: it only decides between equals.
        correct[start + hits.to(exact)] = (logits[hits].argmax(dim=-1) == chunk[hits]).to(exact)
        # What logsumexp does, to the bit; in the memory of the logits, where nobody looks at them afterwards.
        below = logits.sub_(largest[:, None]) if observe is None else logits - largest[:, None]
        total = below.exp_().sum(dim=-1)
        nll = (total.log() + largest - picked).to(exact).double()
        nats[start : start + rows] = torch.where(counted.to(exact), nll, 0.0)
        if observe is not None:
            part = slice(start, start + rows)
            confidence = 1 / total.to(exact).double()
            observe(chunk.to(exact), nats[part], correct[part], confidence, logits.to(exact))
    return nats.view(targets.shape), correct.view(targets.shape)


class Summary:
    """Adds scores up into loss, perplexity, bits per byte and accuracy.

    Attributes:
        tokens, bytes: How many targets were added, and the bytes of text that they are.
    """

    def __init__(self, byte_lengths: np.ndarray) -> None:
        """`byte_lengths` [V] are the bytes of text that each id stands for: 0 for special tokens."""
        self._byte_lengths = byte_lengths
        self._nats = self._text_nats = 0.0
        self.tokens = self._correct = self.bytes = 0

    def add(self, scores: Scores) -> Summary:
        """Counts further targets; returns itself."""
        lengths = self._byte_lengths[scores.targets]
        self._nats += float(scores.nats.sum())
        self._text_nats += float(scores.nats[lengths > 0].sum())
        self.bytes += int(lengths.sum())
        self.tokens += len(scores.targets)
        self._correct += int(scores.correct.sum())
        return self

    def all_reduce(self, all_reduce_sum: Callable[..., list[float]]) -> Summary:
        """With the sums of several processes; `all_reduce_sum` adds each value up over them. Returns itself."""
        self._nats, self._text_nats, *counts = all_reduce_sum(
            self._nats, self._text_nats, self.tokens, self._correct, self.bytes
        )
        self.tokens, self._correct, self.bytes = (int(count) for count in counts)
        return self

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, in nats a token."""
        return self._nats / self.tokens

    def metrics(self) -> dict[str, float]:
        """`loss`, `perplexity` (its exp; left out where that overflows), `bits_per_byte`, `accuracy`.

        Bits per byte leaves special tokens out of its sum and of its bytes: they are no text.
        """
        return loss_metrics(self.tokens, self._nats, self.bytes, self._text_nats, self._correct)


def loss_metrics(tokens: int, nats: float, size: int, text_nats: float, correct: int) -> dict[str, float]:
    """What `Summary.metrics` gives, from sums: `size` in bytes, `text_nats` without those of special tokens."""
    loss = nats / tokens
    numbers = {"loss": loss}
    if loss <= _MAX_EXPONENT:
        numbers["perplexity"] = math.exp(loss)
    if size:
        numbers["bits_per_byte"] = text_nats / math.log(2) / size
    return numbers | {"accuracy": correct / tokens}


def summarize(
    model: LanguageModel,
    ids: Ids,
    windows: Sequence[EvaluationWindow],
    batch_size: int,
    byte_lengths: np.ndarray,
) -> Summary:
    """Scores the windows and adds them up."""
    summary = Summary(byte_lengths)
    for scores in score(model, ids, windows, batch_size):
        summary.add(scores)
    return summary


def evenly_spaced(windows: Sequence[EvaluationWindow], count: int) -> list[EvaluationWindow]:
    """At most `count` of the windows, spread evenly: always the same ones, so evaluations compare."""
    count = min(count, len(windows))
    return [windows[number * len(windows) // count] for number in range(count)]
