"""Top-5 accuracy."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from pipeline.plugin import Metric, TokenScores, hookimpl


class Top5(Metric):
    """The share of tokens that were among the model's five most likely ones; ties are broken by lower id."""

    name: ClassVar[str] = "top5"

    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        sums["tokens"] += len(scores.targets)
        sums["hits"] += int(in_top(5, scores.logits, scores.targets).sum())

    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"accuracy_top5": sums["hits"] / sums["tokens"]}


def in_top(count: int, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Whether each target is among the `count` most likely tokens [N], bool; ties are broken by lower id."""
    target_logits = logits.gather(1, targets[:, None])
    last = logits.topk(min(count, logits.shape[1])).values[:, -1:]
    found = (target_logits > last)[:, 0]
    tied = (target_logits == last).nonzero()[:, 0]  # only these need the tie-break
    before, lower = (
        logits[tied] > target_logits[tied],
        torch.arange(logits.shape[1], device=logits.device) < targets[tied, None],
    )
    found[tied] = (before | ((logits[tied] == target_logits[tied]) & lower)).sum(dim=-1) < count
    return found


@hookimpl
def register_metrics() -> list[type[Metric]]:
    return [Top5]
