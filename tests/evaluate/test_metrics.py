"""Metrics: one pass over the tokens in parts of any size; groups of documents; shipped metrics; tasks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Project
from test_breakdown import CONTEXT, DOCUMENTS, IDS, LENGTHS, MASKED, PLAIN, STARTS, VOCAB, expected_positions, make

from pipeline.authoring.testing import check_metric, token_scores
from pipeline.core.errors import DataError, PluginError
from pipeline.data.batches import evaluation_windows
from pipeline.data.masked import MaskedIds
from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.metrics import MetricSums, run_tasks
from pipeline.evaluate.places import Places
from pipeline.evaluate.tables import TaskItem
from pipeline.evaluate.text_model import text_model
from pipeline.model.checkpoint import Checkpoint, load_checkpoint
from pipeline.model.scoring import Scores, score, score_tokens
from pipeline.plugin import Metric, ModelOutput, TaskMetric, TextModel, TokenScores
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["models", "metrics"])


def shipped(name: str, **options: Any) -> Any:
    return REGISTRY.build("metrics", name, {name: options}, "evaluate.metrics")


def result(metric: Metric, *parts: TokenScores) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for each in parts:
        metric.update(sums, each)
    return metric.result(sums)


class Sees(Metric):
    """Sums of all inputs of a metric, weighted by the index of the token in the text."""

    name: ClassVar[str] = "sees"

    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        expected = torch.nn.functional.cross_entropy(scores.logits, scores.targets, reduction="none")
        torch.testing.assert_close(scores.nats.float(), expected)
        torch.testing.assert_close(scores.confidence.float(), scores.logits.softmax(dim=-1).amax(dim=-1))
        sums["count"] += len(scores.nats)
        for field in ("targets", "nats", "correct", "confidence", "positions", "bytes"):
            sums[field] += float(vars(scores)[field].double().sum())

    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        return dict(sums)


def observed(
    metrics: list[Metric], stride: int, patterns: list[str], ids: MaskedIds = PLAIN
) -> tuple[MetricSums, Scores]:
    sums = MetricSums(metrics, patterns, DOCUMENTS, LENGTHS)
    windows = evaluation_windows(len(IDS), CONTEXT, stride)
    every = list(score(make(), ids, windows, 4, sums.observer(Places.of(ids, windows))))
    return sums, Scores(*(np.concatenate([vars(each)[name] for each in every]) for name in vars(every[0])))


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("stride", [CONTEXT, 3])
@pytest.mark.parametrize("ids", [PLAIN, MASKED], ids=["plain", "masked"])
def test_a_metric_sees_each_target_once_in_parts_of_any_size_and_changes_no_score(
    monkeypatch: pytest.MonkeyPatch, rows: int, stride: int, ids: MaskedIds
) -> None:
    monkeypatch.setattr("pipeline.model.scoring._LOGITS_AT_ONCE", rows * VOCAB)
    plain = observed([], stride, [], ids)[1]
    sums, scores = observed([Sees()], stride, ["document 2", "document [34]", "*.py"], ids)
    positions = expected_positions(stride)
    for name, values in vars(plain).items():
        assert np.array_equal(values, vars(scores)[name])
    assert sums.groups == ["document 2", "document [34]"]
    ranges = {"": (1, len(IDS)), "document 2": (STARTS[2], STARTS[3]), "document [34]": (STARTS[3], len(IDS))}
    for group, (first, last) in ranges.items():
        learnt = ids.learnt(first, last)
        selected = (scores.places >= first) & (scores.places < last)
        found = sums.results(group)
        assert found["count"] == learnt.sum() == selected.sum()
        assert found["targets"] == IDS[first:last][learnt].astype(int).sum()
        assert found["nats"] == pytest.approx(scores.nats[selected].sum(), rel=1e-12)
        assert found["correct"] == scores.correct[selected].sum()
        assert found["bytes"] == LENGTHS[IDS[first:last][learnt]].sum()
        assert found["positions"] == positions[first - 1 : last - 1][learnt].sum()


def test_without_a_metric_nothing_is_observed() -> None:
    places = Places.of(PLAIN, [])
    assert MetricSums([], ["*"], DOCUMENTS, LENGTHS).observer(places) is None
    assert MetricSums([shipped("choices")], [], DOCUMENTS, LENGTHS).observer(places) is None


# ── the shipped ones ──────────────────────────────────────────────────────────────────────────────


def test_top5_and_accuracy_are_those_of_the_sorted_probabilities() -> None:
    scores = token_scores(300)
    best = scores.logits.topk(5).indices == scores.targets[:, None]
    assert result(shipped("top5"), scores) == {"accuracy_top5": best.any(dim=-1).double().mean().item()}
    assert result(shipped("accuracy"), scores) == {"accuracy": best[:, 0].double().mean().item()}


def test_of_equally_likely_tokens_five_are_among_the_first_five() -> None:
    targets, logits = torch.arange(8), torch.zeros(8, 8)
    _, correct = score_tokens(ModelOutput(torch.zeros(1, 8, 2), torch.zeros(8, 2), 8), targets[None])
    assert correct[0].tolist() == [True] + [False] * 7
    scores = made(logits, targets, correct[0])
    assert result(shipped("top5"), scores) == {"accuracy_top5": 5 / 8}
    assert result(shipped("calibration"), scores)["calibration_error"] == 0  # 1 of 8 is right, as it was held for


def made(logits: torch.Tensor, targets: torch.Tensor, correct: torch.Tensor) -> TokenScores:
    zeros, confidence = torch.zeros_like(targets), logits.softmax(dim=-1).amax(dim=-1).double()
    return TokenScores(
        targets=targets, nats=zeros.double(), correct=correct, confidence=confidence, positions=zeros, bytes=zeros,
        logits=logits,
    )  # fmt: skip


def test_calibration_is_the_distance_of_confidence_from_what_came_true() -> None:
    def error(confidence: list[float], correct: list[bool]) -> float:
        first = torch.tensor(confidence, dtype=torch.float64)
        logits = torch.stack([first, *[(1 - first) / 4] * 4], dim=-1).log()
        right = torch.tensor(correct)
        return result(shipped("calibration"), made(logits, (~right).long(), right))["calibration_error"]

    assert error([0.5] * 4, [True, False, True, False]) == pytest.approx(0, abs=1e-12)
    assert error([1.0] * 4, [True, False, True, False]) == 0.5
    # Two bins: 0.9 where 1 of 2 is right, 0.3 where none of 2 is.
    assert error([0.9, 0.9, 0.3, 0.3], [True, False, False, False]) == pytest.approx((2 * 0.4 + 2 * 0.3) / 4)
    # A bin's error is that of its means: too high and too low cancel.
    assert error([0.61, 0.65], [True, False]) == pytest.approx(abs(1 - 1.26) / 2)


# ── what a stage does with them ───────────────────────────────────────────────────────────────────


def test_groups_and_metrics_stand_where_they_are_asked_for(trained_project: Project) -> None:
    root = trained_project.root
    trained_project.succeed("evaluate")
    before = json.loads((root / "metrics" / "evaluate.json").read_text())
    settings = ["evaluate.metrics.use=[accuracy,choices]", "evaluate.groups=[text-0*,text-1*]"]
    told = trained_project.succeed("evaluate", *(part for each in settings for part in ("--set", each))).out
    assert "text-0*: loss" in told
    numbers = json.loads((root / "metrics" / "evaluate.json").read_text())
    about = json.loads((root / "reports" / "evaluation.json").read_text())["sides"]
    assert numbers["tasks"]["choice_accuracy"] in (0.0, 1.0)
    for side in ("val", "test"):
        for name in ("loss", "perplexity", "bits_per_byte", "tokens"):
            assert numbers[side][name] == before[side][name]
        assert numbers[side]["accuracy"] == about[side]["accuracy"]
        assert "calibration_error" not in numbers[side]
        groups = about[side]["groups"].values()
        assert sum(each["tokens"] for each in groups) == numbers[side]["tokens"]
        for name in ("loss", "accuracy"):
            mean = sum(each[name] * each["tokens"] for each in groups) / numbers[side]["tokens"]
            assert mean == pytest.approx(numbers[side][name])
    refused = trained_project.run("evaluate", "--set", "evaluate.groups=[wiki/*]")
    assert refused.code == 1
    assert "evaluate.groups: 'wiki/*'" in refused.err
    assert json.loads((root / "metrics" / "evaluate.json").read_text()) == numbers


class Returns(Metric):
    """Returns the given result."""

    name: ClassVar[str] = "returns"
    what: ClassVar[Any] = None

    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        sums["nats"] += scores.nats.sum()  # type: ignore[assignment]

    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        value: dict[str, float] = type(self).what(sums)
        return value


@pytest.mark.parametrize(
    ("what", "tokens"),
    [
        (lambda sums: None, ["dict of numbers"]),
        (lambda sums: {"mine": float("nan")}, ["'mine'", "finite"]),
        (lambda sums: {"mine": "1"}, ["'mine'", "number"]),
        (lambda sums: {"loss": 1.0}, ["'loss'", "returned"]),
        (lambda sums: {"accuracy_top5": 1.0}, ["'accuracy_top5'", "'top5'"]),
        (lambda sums: {"mine": sums["nats"]}, ["'mine'", "number"]),
        (lambda sums: 1 / 0, ["ZeroDivisionError"]),
    ],
)
def test_what_a_metric_wrongly_returns_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, what: Any, tokens: list[str]
) -> None:
    monkeypatch.setattr(Returns, "what", what)
    sums, _ = observed([shipped("top5"), Returns()], CONTEXT, [])
    with pytest.raises(PluginError) as raised:
        sums.results()
    for token in ["'returns'", *tokens]:
        assert token in str(raised.value)


class Worse(Metric):
    """A mean of means: its sums do not add up."""

    name: ClassVar[str] = "worse"

    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        sums["mean"] += float(scores.nats.mean())
        sums["parts"] += 1

    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"mean_of_means": sums["mean"] / sums["parts"]}


class Changes(Worse):
    """Changes its input."""

    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        sums["total"] += float(scores.logits.exp_().sum())


@pytest.mark.parametrize(("metric", "rule"), [(Worse, "as the whole"), (Changes, "logits")])
def test_the_contract_refuses(metric: type[Metric], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_metric(metric)


# ── tasks ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Checkpoint:
    return load_checkpoint(trained / "artifacts" / "checkpoint", "best", torch.device("cpu"), REGISTRY)


@pytest.fixture(scope="module")
def splits(trained: Path) -> TokenFolder:
    return TokenFolder(trained / "artifacts" / "splits", "")


def test_a_texts_score_is_its_tokens_nats_after_the_prompt(
    checkpoint: Checkpoint, splits: TokenFolder, trained: Path
) -> None:
    model = text_model(checkpoint, splits, ends=True, batch_size=3, folder=trained)
    prompt, text = "the river", " runs to the sea"
    before, text_ids = (list(checkpoint.tokenizer.encode(each)) for each in (prompt, text))
    ids = [checkpoint.tokenizer.end_of_text, *before, *text_ids]
    assert len(ids) <= 17  # they fit into the context
    with torch.no_grad():
        logits = checkpoint.model(torch.tensor([[int(each) for each in ids]])).logits[0].double()
    nats = -logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor([int(each) for each in ids[1:]])]
    assert model.score(text, prompt) == pytest.approx(nats[-len(text_ids) :].sum().item(), rel=1e-5)
    assert model.score(prompt + text) == pytest.approx(model.score(prompt) + model.score(text, prompt), rel=1e-5)
    assert model.score("") == 0
    options = [" listen to a stone", " runs", "", " the"]
    scores = [model.score(each, prompt) for each in options]
    assert model.choose(prompt, options) == scores.index(min(scores)) == 2
    assert model.choose(prompt, options[:2]) == scores[:2].index(min(scores[:2]))


def test_a_long_text_is_scored_in_windows_each_token_once(
    checkpoint: Checkpoint, splits: TokenFolder, trained: Path
) -> None:
    model = text_model(checkpoint, splits, ends=True, batch_size=3, folder=trained)
    ids = splits.ids("val")[:90]
    text = checkpoint.tokenizer.decode(ids[checkpoint.tokenizer.byte_lengths[ids] > 0])
    text_ids = np.array([checkpoint.tokenizer.end_of_text, *checkpoint.tokenizer.encode(text)], dtype=np.uint32)
    windows = evaluation_windows(len(text_ids), 16, 8)
    expected = sum(each.nats.sum() for each in score(checkpoint.model, MaskedIds(text_ids), windows, 5))
    assert model.score(text) == pytest.approx(expected, rel=1e-6)
    half = len(text) // 2
    assert 0 < model.score(text[half:], text[:half]) < expected


def test_it_continues_a_prompt_always_in_the_same_way(
    checkpoint: Checkpoint, splits: TokenFolder, trained: Path
) -> None:
    model = text_model(checkpoint, splits, ends=True, batch_size=3, folder=trained)
    for temperature in (0.0, 1.0):
        text = model.generate("the river", 5, temperature)
        assert text.startswith("the river")
        assert text == model.generate("the river", max_new_tokens=5, temperature=temperature)


def test_choices_are_read_from_a_file_below_data_tasks(
    checkpoint: Checkpoint, splits: TokenFolder, tmp_path: Path
) -> None:
    model = text_model(checkpoint, splits, ends=True, batch_size=3, folder=tmp_path)
    options = [" runs", " of of of of of"]
    likelier = model.choose("the river", options)
    lines = [{"prompt": "the river", "options": options, "answer": answer} for answer in (likelier, 1 - likelier)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0], lines[0]]))
    items: list[TaskItem] = []
    metrics = [shipped("choices", file="mine.jsonl"), shipped("top5")]
    assert run_tasks(metrics, model, items) == {"choice_accuracy": 0.75}
    assert [each.value for each in items] == [1, 0, 1, 1]
    assert items[0] == ("choices", "choice_accuracy", items[0].item, 1.0, options[likelier])
    names = [each.item.split() for each in items]
    assert [name for name, _ in names] == [f"mine.jsonl#{number}" for number in range(1, 5)]
    assert names[0][1] != names[1][1]  # another question has another name
    assert names[0][1] == names[2][1]
    for wrong, tokens in {
        '{"prompt": "a", "options": ["b"], "answer": 1}': ("mine.jsonl line 1", "answer", "1"),
        '{"prompt": "a", "options": ["b"]}': ("mine.jsonl line 1", "answer"),
        "the river": ("mine.jsonl line 1", "JSON"),
        "": ("mine.jsonl", "empty"),
    }.items():
        path.write_text(wrong)
        with pytest.raises(DataError) as raised:
            run_tasks([shipped("choices", file="mine.jsonl")], model)
        for token in ("'choices'", *tokens):
            assert token in str(raised.value)
    with pytest.raises(DataError, match=r"data/tasks/choices\.jsonl is missing"):
        run_tasks([shipped("choices")], model)


def test_two_tasks_share_no_name(checkpoint: Checkpoint, splits: TokenFolder, tmp_path: Path) -> None:
    class Twin(TaskMetric):
        """Returns a number with a name in use."""

        name: ClassVar[str] = "twin"

        def run(self, model: TextModel) -> dict[str, float]:
            return {"length": float(len(model.generate("a", 3)))}

    class Other(Twin):
        """Returns the same name."""

        name: ClassVar[str] = "other"

    model = text_model(checkpoint, splits, ends=True, batch_size=3, folder=tmp_path)
    assert run_tasks([Twin()], model)["length"] >= 1
    with pytest.raises(PluginError, match=r"'other'.*'length'.*'twin'"):
        run_tasks([Twin(), Other()], model)
