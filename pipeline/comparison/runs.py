"""The results of a run as one record, and whether the results of several runs are comparable."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, Field

from pipeline.comparison.sources import RunSource
from pipeline.core.errors import DataError, PipelineError
from pipeline.core.paths import EVALUATION
from pipeline.core.values import OPEN, NonNegativeInt, parse_values
from pipeline.evaluate.bootstrap import FEWEST_DOCUMENTS
from pipeline.evaluate.breakdown import UnitScore
from pipeline.evaluate.tables import BLOCKS, DOCUMENTS, TASKS, read_items, read_units

T = TypeVar("T")
Totals = np.ndarray[tuple[int, int], np.dtype[np.float64]]

SEED = "train.seed"
NATS = "nats per token"
BITS = "bits a byte"
_REMEDY = "run `dvc repro`"


@dataclass(frozen=True)
class RunResult:
    """The evaluation results of one run.

    Attributes:
        name: The name of the run for people.
        params: The effective params of the run, by section.
        about: What was evaluated and how: the content of reports/evaluation.json.
        documents, blocks: The scores of the held-out texts, "val" and, if there is one, "test".
        metrics: The chosen metrics (`evaluate.metrics`) by held-out text and name, such as "val accuracy_top5".
        items: The values of the items of tasks by name, such as questions, by the name of the number.
    """

    name: str
    params: dict[str, Any]
    about: dict[str, Any]
    documents: dict[str, list[UnitScore]]
    blocks: dict[str, list[UnitScore]]
    metrics: dict[str, float] = field(default_factory=dict)
    items: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def sides(self) -> list[str]:
        return list(self.about["sides"])

    @property
    def seed(self) -> object:
        return self.params["train"].get("seed")


def read_run(source: RunSource) -> RunResult:
    """Reads the results of a run.

    Raises:
        PipelineError: a file is missing or corrupt, or metrics and reports are from different evaluations.
    """

    def values(path: str, kind: Any) -> Any:
        return parse_values(source.read(path), kind, f"{source.name}: {path}", _REMEDY)

    def table(name: str, parse: Callable[[str], T]) -> T:
        text = source.read(f"reports/{name}")
        try:
            return parse(text)
        except (ValueError, csv.Error) as error:
            raise DataError(f"{source.name}: reports/{name} is damaged ({error}): {_REMEDY}") from None

    metrics = values("metrics/evaluate.json", dict[str, Any])
    about = asdict(values(f"reports/{EVALUATION}", _About))
    evaluated = {"weights": about["weights"], "stride": about["stride_share"]}
    run = RunResult(
        source.name,
        {**about["params"], "evaluate": evaluated},
        about,
        table(DOCUMENTS, read_units),
        table(BLOCKS, read_units),
    )
    if about["task_items"]:
        for each in table(TASKS, read_items):
            run.items.setdefault(each.number, {})[each.item] = each.value
    for side in run.sides:
        totals = np.array([unit[1:3] for unit in run.documents.get(side, [])]).reshape(-1, 2).sum(axis=0)
        numbers = metrics.get(side)
        loss = numbers.get("loss") if isinstance(numbers, dict) else None
        if isinstance(numbers, dict):
            chosen = {name: value for name, value in numbers.items() if name not in _ALWAYS}
            run.metrics.update({f"{side} {name}": value for name, value in chosen.items() if _is_number(value)})
        known = isinstance(loss, int | float) and totals[0] > 0 and side in run.blocks
        if not known or not math.isclose(totals[1] / totals[0], float(loss or 0), rel_tol=1e-9):
            raise DataError(
                f"{source.name}: metrics/evaluate.json and reports/{DOCUMENTS} are from different evaluations "
                f"({side}): {_REMEDY}"
            )
    return run


_ALWAYS = ("loss", "perplexity", "bits_per_byte", "tokens")
"""The numbers of a text in evaluate.json that no chosen metric computes."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def mean_metrics(groups: Sequence[Sequence[RunResult]]) -> list[dict[str, float]]:
    """The mean of each chosen metric in each group of runs; of those that all runs have."""
    runs = [run for group in groups for run in group]
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    return [
        {name: math.fsum(run.metrics[name] for run in group) / len(group) for name in names} for group in groups
    ]


def _require_train_params(params: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if "train" not in params:
        raise ValueError("the params of the section train are missing")
    return params


@dataclass(frozen=True)
class _Side:
    """The digests of a held-out text and of its tokens."""

    text: str
    tokens: str


@dataclass(frozen=True)
class _Tokenizer:
    """The tokenizer of the run."""

    fingerprint: str


@dataclass(frozen=True)
class _About:
    """The required content of reports/evaluation.json."""

    __pydantic_config__ = OPEN

    sides: dict[str, _Side]
    step: NonNegativeInt
    weights: str
    stride_share: Annotated[float, Field(gt=0, le=1)]
    tokenizer: _Tokenizer
    params: Annotated[dict[str, dict[str, Any]], AfterValidator(_require_train_params)]
    task_items: NonNegativeInt = 0
    packed: bool = False


def common_unit(runs: Sequence[RunResult]) -> str:
    """The unit in which to compare the runs: nats per token, or bits per byte if their tokens differ.

    Raises:
        PipelineError: the runs were evaluated with different strides or on different texts, or have no text in
            common.
    """
    first = runs[0]
    unit = NATS
    for other in runs[1:]:
        if first.about["stride_share"] != other.about["stride_share"]:
            raise PipelineError(
                f"{first.name} was evaluated with evaluate.stride {first.about['stride_share']}, {other.name} with "
                f"{other.about['stride_share']}: a shorter stride usually gives lower losses; evaluate both with "
                "the same stride"
            )
        if first.about["packed"] != other.about["packed"]:
            raise PipelineError(
                f"{first.name} and {other.name} differ in train.pack_documents, so their losses are not "
                "comparable: in windows of whole documents, the first token of each is not scored"
            )
        sides = shared_sides([first, other])
        if not sides:
            raise PipelineError(f"{first.name} and {other.name} have no held-out text in common")
        for side in sides:
            mine, others = first.about["sides"][side], other.about["sides"][side]
            if mine["text"] != others["text"]:
                raise PipelineError(
                    f"{first.name} and {other.name} were evaluated on different {side} texts, so their losses are "
                    "not comparable: use the same texts and the same split"
                )
            if mine["tokens"] != others["tokens"]:
                unit = BITS
        if first.about["tokenizer"]["fingerprint"] != other.about["tokenizer"]["fingerprint"]:
            unit = BITS
    return unit


def shared_sides(runs: Sequence[RunResult]) -> list[str]:
    """The held-out texts that all runs have."""
    return [side for side in runs[0].sides if all(side in run.sides for run in runs)]


@dataclass(frozen=True)
class PairedScores:
    """The scores of several runs on the same units of text.

    Attributes:
        what: The kind of units, "documents" or "blocks".
        names: The names of the units [units].
        nats: The negative log-likelihoods [runs, units], in nats, or, if the unit is bits per byte, in bits.
        sizes: The divisors [runs, units]: numbers of tokens, or of bytes.
    """

    what: str
    names: list[str]
    nats: Totals
    sizes: Totals

    @property
    def losses(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The loss of each run on the whole text [runs]."""
        found: np.ndarray[tuple[int], np.dtype[np.float64]] = self.nats.sum(axis=1) / self.sizes.sum(axis=1)
        return found

    def only(self, rows: Sequence[int]) -> PairedScores:
        """The scores of some of the runs, in the order of `rows`."""
        return replace(self, nats=self.nats[list(rows)], sizes=self.sizes[list(rows)])


def pair_scores(runs: Sequence[RunResult], side: str, unit: str) -> PairedScores:
    """The runs' scores on a held-out text by document, or by block if there are fewer than 30 documents."""
    documents = [run.documents[side] for run in runs]
    names = [each.name for each in documents[0]]
    if len(names) >= FEWEST_DOCUMENTS and all([each.name for each in units] == names for units in documents):
        return _score_matrix("documents", documents, unit)
    fewest = min(len(run.blocks[side]) for run in runs)
    return _score_matrix("blocks", [_merged(run.blocks[side], fewest) for run in runs], unit)


def _merged(blocks: list[UnitScore], count: int) -> list[UnitScore]:
    """Merges adjacent blocks until there are `count`. Both numbers are powers of two, except for tiny texts."""
    cuts = [number * len(blocks) // count for number in range(count + 1)]
    parts = [blocks[start:end] for start, end in pairwise(cuts)]
    return [
        UnitScore(str(number), *(sum(column) for column in zip(*(each[1:] for each in part), strict=True)))
        for number, part in enumerate(parts)
    ]


def _score_matrix(what: str, units: Sequence[Sequence[UnitScore]], unit: str) -> PairedScores:
    values = np.array([[each[1:] for each in run_units] for run_units in units], dtype=np.float64)
    tokens, nats, size, text_nats = (values[:, :, column] for column in range(4))
    names = [each.name for each in units[0]]
    if unit == NATS:
        return PairedScores(what, names, nats, tokens)
    return PairedScores(what, names, text_nats / math.log(2), size)
