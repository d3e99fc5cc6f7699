"""What only evaluation asks of each target: its position, whether it was in the top 5, the model's confidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.data.batches import EvaluationWindow
from pipeline.data.tokens import Ids
from pipeline.model.architecture import LanguageModel
from pipeline.model.scoring import Scores, score
from pipeline.plugin.components import IGNORED


@dataclass(frozen=True)
class TokenDetails:
    """What evaluation knows of each target beside its `Scores`; arrays as long as those.

    Attributes:
        positions: How many tokens of the context came before it, less one: 0 … T−1.
        top5: Whether it was among the five likeliest; of equally likely tokens the first ones come first.
        confidence: The likeliest token's probability, float64.
    """

    positions: np.ndarray[tuple[int], np.dtype[np.int64]]
    top5: np.ndarray[tuple[int], np.dtype[np.bool_]]
    confidence: np.ndarray[tuple[int], np.dtype[np.float64]]


def score_in_detail(
    model: LanguageModel, ids: Ids, windows: Sequence[EvaluationWindow], batch_size: int
) -> Iterator[tuple[Scores, TokenDetails]]:
    """What `score` yields, each with its details."""
    top5: list[torch.Tensor] = []
    confidence: list[torch.Tensor] = []

    def observe(logits: torch.Tensor, targets: torch.Tensor) -> None:
        counted = targets != IGNORED
        top5.append(in_top(5, logits, targets.clamp(min=0))[counted])
        confidence.append(highest_probability(logits)[counted])

    first = 0
    for scores in score(model, ids, windows, batch_size, observe):
        batch = windows[first : first + batch_size]
        positions = np.concatenate([_positions(window) for window in batch])
        yield scores, TokenDetails(positions, _joined(top5), _joined(confidence))
        first += len(batch)


def _positions(window: EvaluationWindow) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    last = window.end - window.start - 1
    return np.arange(last - window.counted, last)


def _joined(parts: list[torch.Tensor]) -> np.ndarray[tuple[int], np.dtype[Any]]:
    """A batch's parts as one array; the list is empty afterwards."""
    whole = torch.cat(parts).cpu().numpy()
    parts.clear()
    return whole


def highest_probability(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token's probability [N] in float64, from logits [N, V]."""
    return 1 / (logits - logits.amax(dim=-1, keepdim=True)).exp_().sum(dim=-1).double()


def in_top(count: int, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Whether fewer than `count` tokens come before each target [N]: likelier ones, and equal ones of lower id."""
    own = logits.gather(1, targets[:, None])
    before = (logits > own).sum(dim=-1)
    near = (before < count).nonzero()[:, 0]
    equal = logits[near] == own[near]
    tied = (equal.sum(dim=-1) > 1).nonzero()[:, 0]
    lower = torch.arange(logits.shape[1], device=logits.device) < targets[near[tied], None]
    before[near[tied]] += (equal[tied] & lower).sum(dim=-1)
    return before < count
