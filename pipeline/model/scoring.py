"""Token scoring: the negative log-likelihood of each token, and the metrics that follow from it.

All numbers that compare runs (loss, perplexity, bits per byte) are computed here from the plain cross-entropy of
the true next token, whatever the training loss is. Sums are in float64 and over tokens, so that the batch size does
not change a result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import torch
from torch import nn

from pipeline.core.errors import DataError
from pipeline.data.batches import EvaluationWindow
from pipeline.data.joined import check_ids
from pipeline.data.masked import MaskedIds
from pipeline.model.architecture import LanguageModel, checked_forward
from pipeline.model.device import device_of, float64_device
from pipeline.plugin.components import IGNORED, ModelOutput

_LOGITS_AT_ONCE, _LOGITS_AT_ONCE_ON_CUDA = 1 << 23, 1 << 26
_MAX_EXPONENT = 709.0


@dataclass(frozen=True)
class Scores:
    """The scores of N targets.

    Attributes:
        targets: The true ids [N].
        nats: Their negative log-likelihoods [N], float64.
        correct: Whether the most likely token was the true one [N].
        places: The targets' indices in the text [N].
    """

    targets: np.ndarray[tuple[int], np.dtype[np.int64]]
    nats: np.ndarray[tuple[int], np.dtype[np.float64]]
    correct: np.ndarray[tuple[int], np.dtype[np.bool_]]
    places: np.ndarray[tuple[int], np.dtype[np.int64]]


Observer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called for each chunk of rows, in order, with targets [N] (including `IGNORED`), their nats [N], whether each was
the most likely token [N], the most likely token's probability [N] (float64), and logits [N, V] in float32 (or
wider). It must not modify or keep the tensors."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; restores the mode and all random states."""
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


@torch.no_grad()  # not inference mode: FSDP2 reuses buffers of this forward pass in training
def score(
    model: LanguageModel,
    ids: MaskedIds,
    windows: Sequence[EvaluationWindow],
    batch_size: int,
    observe: Observer | None = None,
    autocast: Callable[[], AbstractContextManager[object]] | None = None,
) -> Iterator[Scores]:
    """Scores the counted targets of the windows in order, batch by batch, in eval mode. Tokens that are only read
    are no targets; a batch of them has no scores.

    Args:
        model, ids, windows, batch_size: What is scored, and how many windows at once.
        observe: Called with the details of a batch before its scores are yielded.
        autocast: A context to compute in, such as autocast in bfloat16; None: float32.

    Raises:
        DataError: an id is not in the vocabulary.
    """
    device, vocab_size = device_of(model), model.architecture.shape.vocab_size
    with evaluating(model):
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            inputs, targets, places = _padded(ids, batch)
            for each in (inputs, targets):
                check_ids(each, vocab_size, "the text to score", "run `python -m pipeline split`")
            counted = targets != IGNORED
            with autocast() if autocast else nullcontext():
                output = checked_forward(model, torch.from_numpy(inputs).to(device))
                nats, correct = score_tokens(output, torch.from_numpy(targets).to(device), observe)
            yield Scores(
                targets=targets[counted],
                nats=nats.cpu().numpy()[counted],
                correct=correct.cpu().numpy()[counted],
                places=places[counted],
            )


def _padded(ids: MaskedIds, windows: Sequence[EvaluationWindow]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and the targets' indices in the text [B, T]; shorter windows are padded on the right, which
    causal attention ignores."""
    length = max(window.end - window.start for window in windows) - 1
    inputs = np.zeros((len(windows), length), dtype=np.int64)
    targets = np.full((len(windows), length), IGNORED, dtype=np.int64)
    for row, window in enumerate(windows):
        count = window.end - window.start - 1
        inputs[row, :count] = ids.ids[window.start : window.end - 1]
        targets[row, count - window.counted : count] = ids.targets(window.end - window.counted, window.end)
    places = np.array([[window.start + 1] for window in windows]) + np.arange(length)
    return inputs, targets, places


def score_tokens(
    output: ModelOutput, targets: torch.Tensor, observe: Observer | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """−log p(target) in nats (float64), and whether the target is the most likely token, both [B, T].

    Of equally likely tokens, the first one counts. Ignored targets get 0 nats. The logits are computed in chunks of
    rows, to bound the memory for large vocabularies; `observe` is called for each chunk. All results are on
    `float64_device`: for an Apple GPU, the CPU.
    """
    hidden = output.hidden.flatten(0, 1)
    flat = targets.flatten()
    exact = float64_device(flat.device)
    nats = torch.zeros(flat.shape, dtype=torch.float64, device=exact)
    correct = torch.zeros(flat.shape, dtype=torch.bool, device=exact)
    at_once = _LOGITS_AT_ONCE_ON_CUDA if flat.device.type == "cuda" else _LOGITS_AT_ONCE
    rows = max(1, at_once // output.vocab_size)
    for start in range(0, len(flat), rows):
        chunk = flat[start : start + rows]
        logits = ModelOutput(hidden[start : start + rows], output.head_weight, output.vocab_size).logits
        counted = chunk != IGNORED
        picked = logits.gather(1, chunk.clamp(min=0)[:, None])[:, 0]
        largest = logits.amax(dim=-1)
        hits = (counted & (picked == largest)).nonzero()[:, 0]
        # argmax is slow, so only ties are resolved by it.
        correct[start + hits.to(exact)] = (logits[hits].argmax(dim=-1) == chunk[hits]).to(exact)
        # Equal to logsumexp bit by bit; in place, unless `observe` needs the logits.
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
    """Accumulates scores into loss, perplexity, bits per byte and accuracy.

    Attributes:
        tokens, bytes: The number of targets, and of the bytes of their text.
    """

    def __init__(self, byte_lengths: np.ndarray) -> None:
        """`byte_lengths` [V] is the number of bytes of each id's text; 0 for special tokens."""
        self._byte_lengths = byte_lengths
        self._nats = self._text_nats = 0.0
        self.tokens = self._correct = self.bytes = 0

    def add(self, scores: Scores) -> Summary:
        """Adds scores; returns self."""
        lengths = self._byte_lengths[scores.targets]
        self._nats += float(scores.nats.sum())
        self._text_nats += float(scores.nats[lengths > 0].sum())
        self.bytes += int(lengths.sum())
        self.tokens += len(scores.targets)
        self._correct += int(scores.correct.sum())
        return self

    def all_reduce(self, all_reduce_sum: Callable[..., list[float]]) -> Summary:
        """Sums over all processes by `all_reduce_sum`; returns self."""
        self._nats, self._text_nats, *counts = all_reduce_sum(
            self._nats, self._text_nats, self.tokens, self._correct, self.bytes
        )
        self.tokens, self._correct, self.bytes = (int(count) for count in counts)
        return self

    @property
    def loss(self) -> float:
        """The mean negative log-likelihood, in nats per token; NaN before the first target."""
        return self._nats / self.tokens if self.tokens else math.nan

    def metrics(self) -> dict[str, float]:
        """`loss`, `perplexity` (omitted if it overflows), `bits_per_byte` and `accuracy`.

        Bits per byte counts neither the nats nor the bytes of special tokens.

        Raises:
            DataError: there is no target.
        """
        if not self.tokens:
            raise DataError("there is nothing to score: the text has no token that is to be learnt")
        return loss_metrics(self.tokens, self._nats, self.bytes, self._text_nats, self._correct)


def loss_metrics(tokens: int, nats: float, size: int, text_nats: float, correct: int) -> dict[str, float]:
    """The metrics of `Summary.metrics` from sums; `size` is in bytes, `text_nats` excludes special tokens."""
    loss = nats / tokens
    numbers = {"loss": loss}
    if loss <= _MAX_EXPONENT:
        numbers["perplexity"] = math.exp(loss)
    if size:
        numbers["bits_per_byte"] = text_nats / math.log(2) / size
    return numbers | {"accuracy": correct / tokens}


def evenly_spaced(windows: Sequence[EvaluationWindow], count: int, ids: MaskedIds) -> list[EvaluationWindow]:
    """At most `count` windows, about evenly spaced: the first one with a target of each of `count` stretches. The
    choice is deterministic, so that evaluations are comparable."""
    count = min(count, len(windows))
    bounds = [number * len(windows) // max(count, 1) for number in range(count + 1)]
    chosen = []
    for first, last in pairwise(bounds):
        stretch = (windows[place] for place in range(first, last))
        found = (each for each in stretch if ids.learnt(each.end - each.counted, each.end).any())
        chosen += list(islice(found, 1))
    return chosen
