"""The model card: correct numbers, and texts and names are escaped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from conftest import Project
from ruamel.yaml import YAML

from pipeline.export.model_card import ModelCard

SIDE = {"loss": 1.5, "perplexity": 4.4817, "bits_per_byte": 2.1640, "accuracy": 0.25, "tokens": 100}
CARD = ModelCard(
    config={
        "name": "gpt2", "n_layers": 2, "n_heads": 2, "emb_dim": 16, "context_length": 16, "vocab_size": 320,
        "parameters": 123_456,
    },
    corpus="files",
    sides={"train": {"documents": 8, "bytes": 12_345, "tokens": 4000}},
    tokenizer="bpe",
    weights="best",
    step=6,
    metrics={"step": 6, "stride": 16, "val": {**SIDE, "baselines": {"unigram": 3.0, "xz": 2.5}}},
    prompt="the river",
    continuation=" runs",
    params={"train": {"seed": 1, "optimizer": {"name": "adamw"}}},
    proofs={"huggingface": {"reader": "transformers 5", "largest_logit_difference": 1.2e-6}},
    versions={"torch": "2.13.0"},
)  # fmt: skip


def front_matter(text: str) -> dict[str, Any]:
    head = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    assert head
    loaded: dict[str, Any] = YAML(typ="safe").load(head[1])
    return loaded


def test_it_says_what_there_is() -> None:
    text = CARD.text()
    head = front_matter(text)
    assert head["library_name"] == "transformers"
    assert "license" not in head
    (result,) = head["model-index"][0]["results"]
    assert {each["type"]: each["value"] for each in result["metrics"]} == {
        name: SIDE[name] for name in ("loss", "perplexity", "bits_per_byte", "accuracy")
    }
    for part in ("123 thousand parameters", "| train | 8 | 12,345 | 4,000 |", "1.2e-06", "transformers 5", "adamw"):
        assert part in text
    assert "AutoModelForCausalLM" in text
    assert "a cut one counts" not in text
    assert "a cut one counts in each split" in replace(CARD, params={"split": {"by": "position"}}).text()


def test_intervals_are_shown_where_there_are_any() -> None:
    assert CARD.metrics
    interval = {"loss": {"low": 1.25, "high": 1.75}}
    with_one = replace(CARD, metrics={**CARD.metrics, "val": {**SIDE, "interval": interval}})
    assert "1.500 (1.250 to 1.750)" in with_one.text().replace("\\", "")
    assert "(1.25 to" not in CARD.text()


def test_of_a_model_that_answers_it_says_what_was_scored() -> None:
    assert CARD.metrics
    scored = {
        **SIDE,
        "baselines": {"unigram": 3.0},
        "scored": {"tokens": 1234, "of": 40_000, "what": "the answers"},
    }
    metrics = {**CARD.metrics, "val": scored, "tasks": {"questions.exact_match": 0.5}}
    text = replace(CARD, metrics=metrics, chat=True).text().replace("\\", "")
    assert "Scored: 1,234 of 40,000 tokens of val: the answers." in text
    assert "no number of xz" in text
    assert "| questions.exact_match | 0.5 |" in text
    assert "apply_chat_template" in text
    assert "does not follow" not in text
    for odd in (None, 3, {"tokens": "1", "of": 2, "what": ""}, {"tokens": 1}):
        assert "Scored" not in replace(CARD, metrics={"val": {**scored, "scored": odd}, "tasks": odd}).text()
    assert "Scored" not in CARD.text()


@pytest.mark.parametrize("interval", [None, 3, {"loss": 1}, {"loss": {"low": 1}}, {"other": {"low": 1, "high": 2}}])
def test_an_interval_of_another_shape_is_left_out(interval: Any) -> None:
    text = replace(CARD, metrics={"val": {**SIDE, "interval": interval}}).text()
    (row,) = [line for line in text.splitlines() if line.startswith("| loss")]
    assert " to " not in row


def test_without_an_evaluation_of_these_weights_it_claims_nothing() -> None:
    text = replace(CARD, metrics=None).text()
    assert "were not evaluated" in text
    assert "model-index" not in front_matter(text)


NASTY = (
    '```\n---\nlicense: mit\n"}] <script>alert(1)</script> | x | [a](javascript:b) \x1b[31m \u202e # no *head* ````'
)


def test_nothing_breaks_out_of_it() -> None:
    card = replace(
        CARD,
        corpus=NASTY,
        tokenizer=NASTY,
        prompt=NASTY,
        continuation=NASTY,
        params={"train": {"name": NASTY}},
        proofs={"huggingface": {"reader": NASTY, "note": NASTY}},
        versions={"torch": NASTY},
    )
    text = card.text()
    head = front_matter(text)
    assert set(head) == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert head["model-index"][0]["results"][0]["dataset"]["type"] == NASTY
    assert "\x1b" not in text
    assert "\u202e" not in text
    body, outside, fence = text.split("\n---\n", 1)[1], [], None
    for line in body.splitlines():
        mark = re.match(r"(`{3,})(\w*)$", line)
        if fence is None and mark:
            fence = mark[1]
        elif mark and fence is not None and not mark[2] and len(mark[1]) >= len(fence):
            fence = None
        elif fence is None:
            outside.append(line)
    assert fence is None
    prose = "\n".join(outside)
    assert "<script" not in prose.replace("\\<", "")
    assert not re.search(r"(?<!\\)\]\(javascript", prose)
    headings = [line for line in outside if line.startswith("#")]
    assert headings == [line for line in CARD.text().splitlines() if line.startswith("#")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in outside if line.startswith("| huggingface")}
    assert widths == {4}


def test_the_stage_writes_it_from_what_was_evaluated(trained_project: Project) -> None:
    folder = trained_project.root / "artifacts" / "export"
    trained_project.succeed("export")
    assert "were not evaluated" in (folder / "README.md").read_text()
    trained_project.succeed("evaluate")
    trained_project.succeed("export")
    text = (folder / "README.md").read_text()
    metrics = json.loads((trained_project.root / "metrics" / "evaluate.json").read_text())
    values = {
        (result["dataset"]["split"], each["type"]): each["value"]
        for result in front_matter(text)["model-index"][0]["results"]
        for each in result["metrics"]
    }
    assert values[("test", "bits_per_byte")] == metrics["test"]["bits_per_byte"]
    assert values[("val", "loss")] == metrics["val"]["loss"]
    assert '"vocab_size": 320' in text
    assert "muon" not in text.split("## Training")[1]  # what was not chosen
    trained_project.succeed("train", "--set", "train.seed=2")
    trained_project.succeed("export")
    assert "were not evaluated" in (folder / "README.md").read_text()  # those numbers are the other model's
