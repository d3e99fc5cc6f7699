"""The params that a result records, and how two sets of them differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.params_diff import changed, contradictions, differences, effective, flatten
from pipeline.core.source import import_closure

TRAIN = {
    "seed": 1,
    "schedule": {"name": "linear", "warmup_steps": 30, "final": 0.0},
    "optimizer": {"name": "muon", "muon": {"lr": 0.02, "options": {}}, "adamw": {"lr": 0.002}},
    "eval_callbacks": {"use": ["sample_text"], "sample_text": {"prompt": "a"}, "early_stopping": {"patience": 5}},
}


def test_options_of_components_that_are_not_chosen_are_left_out() -> None:
    assert effective(TRAIN) == {
        "seed": 1,
        "schedule": {"name": "linear", "warmup_steps": 30, "final": 0.0},
        "optimizer": {"name": "muon", "muon": {"lr": 0.02, "options": {}}},
        "eval_callbacks": {"use": ["sample_text"], "sample_text": {"prompt": "a"}},
    }
    assert effective({"train": TRAIN, "split": {"val": 0.1}}) == {"train": effective(TRAIN), "split": {"val": 0.1}}


def test_options_of_a_chosen_component_are_kept_as_they_are_whatever_their_names() -> None:
    options = {"name": "NAdam", "use": True, "options": {"betas": {"first": 0.9}}}
    section = {"optimizer": {"name": "torch", "torch": options}}

    assert effective(section) == section
    assert changed(section, {"optimizer": {"name": "torch", "torch": {**options, "options": {}}}}) == {
        "optimizer.torch.options.betas.first": (0.9, None)
    }


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"seed": 2}, "seed 1 → 2"),
        ({"optimizer": {**TRAIN["optimizer"], "name": "adamw"}}, "optimizer.name muon → adamw"),
        ({"optimizer": {"name": "muon"}}, "optimizer.muon.lr 0.02 → none"),
        ({"eval_callbacks": {"use": []}}, 'eval_callbacks.use ["sample_text"] → []'),
        ({"eval_callbacks": {**TRAIN["eval_callbacks"], "sample_text": {"prompt": "a\n"}}},
         'eval_callbacks.sample_text.prompt a → "a\\n"'),
        ({"schedule": "linear"}, 'schedule {"name": "linear", "warmup_steps": 30, "final": 0.0} → linear'),
    ],
)  # fmt: skip
def test_a_difference_names_the_param_and_both_values(values: dict[str, object], line: str) -> None:
    assert differences(TRAIN, {**TRAIN, **values}) == [line]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optimizer": {**TRAIN["optimizer"], "adamw": {"lr": 9.0}}},
        {"eval_callbacks": {"use": ["sample_text"], "sample_text": {"prompt": "a"}}},
    ],
)
def test_what_is_not_chosen_makes_no_difference(values: dict[str, object]) -> None:
    assert differences(TRAIN, {**TRAIN, **values}) == []


def test_params_of_only_one_side_are_no_contradiction() -> None:
    given = {**TRAIN, "seed": 2, "log_every": 10, "optimizer": {"name": "muon", "muon": {"lr": 0.02}}}
    assert contradictions(TRAIN, given) == {"seed": ("1", "2")}
    assert contradictions(TRAIN, {"optimizer": {"name": "lion"}}) == {"optimizer.name": ("muon", "lion")}


def test_nested_values_by_dotted_name() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "d": [2]}


def test_it_imports_nothing_of_the_project() -> None:
    root = Path(__file__).resolve().parents[2]
    assert import_closure("pipeline.core.params_diff", root) == {Path("pipeline/core/params_diff.py")}
