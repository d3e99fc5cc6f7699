"""The chosen metrics, computed in the same pass as the loss, also by group of documents; and tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from pipeline.core.errors import DataError, ParamsError, PluginError
from pipeline.evaluate.breakdown import UnitScore
from pipeline.evaluate.places import Places
from pipeline.evaluate.tables import TaskItem
from pipeline.model.scoring import loss_metrics
from pipeline.plugin.calls import calling, check_numbers, label
from pipeline.plugin.components import IGNORED, Metric, TaskMetric, TextModel, TokenScores

_PLAIN = ("loss", "perplexity", "bits_per_byte", "tokens")
"""The numbers that metrics/evaluate.json always has for each text."""


Updates = list[tuple[str, str, dict[str, float]]]
"""What metrics added for some targets: the group, the metric's name, and the sums of these targets, by call."""


class MetricSums:
    """The sums of the chosen metrics over a text. Updates must be added in the order of the text.

    Attributes:
        groups: The patterns that match a document of this text.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        patterns: Iterable[str],
        documents: Sequence[tuple[str, int]],
        byte_lengths: np.ndarray[Any, Any],
    ) -> None:
        """
        Args:
            metrics: The chosen metrics; tasks are ignored.
            patterns: The groups, as patterns of document names.
            documents: The name and the offset of the first token of each document.
            byte_lengths: The number of bytes of text of each id [V].
        """
        self._metrics = [metric for metric in metrics if not isinstance(metric, TaskMetric)]
        self._starts = np.array([start for _, start in documents], dtype=np.int64)
        found = {each: np.array([fnmatchcase(name, each) for name, _ in documents]) for each in patterns}
        self._members = {pattern: members for pattern, members in found.items() if members.any()}
        self.groups = list(self._members)
        self._byte_lengths = torch.from_numpy(byte_lengths)
        self._places, self._next = Places(*np.zeros((2, 0), np.int64)), 0
        self._sums: dict[tuple[str, str], defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._updates: Updates = []

    def observer(self, places: Places) -> Any:
        """The observer of logits for `score`, whose targets are at `places`; None if there is no metric, so that no
        work is done for it."""
        self._places, self._next = places, 0
        return self._observe if self._metrics else None

    def take(self) -> Updates:
        """The updates since the last call, which are not added to the sums yet."""
        updates, self._updates = self._updates, []
        return updates

    def add(self, updates: Updates) -> None:
        """Adds updates to the sums."""
        for group, metric, values in updates:
            sums = self._sums[group, metric]
            for name, value in values.items():
                sums[name] += value

    def _observe(
        self,
        targets: torch.Tensor,
        nats: torch.Tensor,
        correct: torch.Tensor,
        confidence: torch.Tensor,
        logits: torch.Tensor,
    ) -> None:
        counted = targets != IGNORED
        if not counted.all():
            targets, nats, correct, confidence, logits = (
                each[counted] for each in (targets, nats, correct, confidence, logits)
            )
        offsets, in_window = (each[self._next : self._next + len(targets)] for each in self._places)
        self._next += len(targets)
        if not len(targets):
            return
        if self._byte_lengths.device != targets.device:
            self._byte_lengths = self._byte_lengths.to(targets.device)
        positions = torch.from_numpy(in_window).to(targets.device)
        scores = TokenScores(targets, nats, correct, confidence, positions, self._byte_lengths[targets], logits)
        self._update("", scores)
        document = np.searchsorted(self._starts, offsets, side="right") - 1
        for pattern, is_member in self._members.items():
            members = torch.from_numpy(is_member[document]).to(targets.device)
            if members.any():
                self._update(pattern, TokenScores(**{name: value[members] for name, value in vars(scores).items()}))

    def _update(self, group: str, scores: TokenScores) -> None:
        for metric in self._metrics:
            sums: defaultdict[str, float] = defaultdict(float)
            with calling(metric):
                metric.update(sums, scores)
            self._updates.append((group, metric.name, dict(sums)))

    def results(self, group: str = "") -> dict[str, float]:
        """The metrics' numbers over the text or a group of its documents.

        Raises:
            PluginError: a metric returned invalid numbers or a name that is in use.
        """
        self.add(self.take())
        used_names = dict.fromkeys(_PLAIN, "the loss")
        found: dict[str, float] = {}
        for metric in self._metrics:
            with calling(metric):
                numbers = metric.result(self._sums[group, metric.name])
            found |= _checked(numbers, metric, used_names)
        return found


def group_numbers(documents: Sequence[UnitScore], sums: MetricSums) -> dict[str, dict[str, float]]:
    """The numbers of each group of documents, by pattern: the loss and its relatives, and those of the metrics."""
    found = {}
    for pattern in sums.groups:
        members = [unit for unit in documents if fnmatchcase(unit.name, pattern)]
        if members:
            tokens, nats, size, text_nats, correct = (
                sum(column) for column in list(zip(*members, strict=True))[1:]
            )
            plain = loss_metrics(tokens, nats, size, text_nats, correct)
            found[pattern] = {**plain, **sums.results(pattern), "tokens": tokens, "documents": len(members)}
    return found


def check_groups(patterns: Iterable[str], found: Iterable[Mapping[str, Any]]) -> None:
    """Raises ParamsError if a pattern matches no document of any held-out text."""
    seen = {pattern for groups in found for pattern in groups}
    for pattern in patterns:
        if pattern not in seen:
            raise ParamsError(
                f"evaluate.groups: {pattern!r} matches no held-out document: their names are in "
                "reports/documents.tsv, and * matches any characters"
            )


def run_tasks(metrics: Sequence[Metric], model: TextModel, items: list[TaskItem] | None = None) -> dict[str, float]:
    """Runs the chosen tasks; returns their numbers, and adds what they record to `items`."""
    used_names: dict[str, str] = {}
    found: dict[str, float] = {}
    for metric in metrics:
        if isinstance(metric, TaskMetric):

            def record(number: str, item: str, value: float, text: str = "", task: str = metric.name) -> None:
                if items is not None:
                    items.append(TaskItem(task, number, item, float(value), text))

            try:
                with calling(metric, passes=(ValueError,)):
                    numbers = metric.run(replace(model, record=record))
            except ValueError as error:  # what a person can mend, such as a missing file
                if type(error) is not ValueError:
                    with calling(metric):
                        raise
                raise DataError(f"the metric {metric.name!r}: {' '.join(str(error).split())}") from error
            found |= _checked(numbers, metric, used_names)
    return found


def _checked(numbers: Any, metric: Metric, used_names: dict[str, str]) -> dict[str, float]:
    """Validates the numbers that a metric returned, and adds their names to `used_names`."""
    where = label(metric)
    check_numbers(numbers, where)
    for name in numbers:
        if name in used_names:
            raise PluginError(
                f"{where} returned {name!r}, a name that {used_names[name]} uses: choose another name"
            )
        used_names[name] = f"the metric {metric.name!r}"
    return {name: float(value) for name, value in numbers.items()}
