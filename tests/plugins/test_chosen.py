"""Every shipped component is chosen by setting one value, and does its work in a real stage."""

from __future__ import annotations

import json

import pytest
from conftest import REPOSITORY, Project

from pipeline.authoring.listing import details
from pipeline.plugin.components import KINDS
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins")
SHIPPED = [(kind, name) for kind in KINDS for name in REGISTRY.names(kind)]


TOGETHER = {"samplers", "metrics"}
"""Kinds whose components are all tried in one run."""
# tests/plugins/test_exports.py chooses every format.
CHOICES = [(kind, name) for kind, name in SHIPPED if kind not in {*TOGETHER, "exporters"}]
CHOICES.remove(("corpora", "conversations"))  # there are none; tests/plugins/test_conversations.py has some
CHOICES.remove(("corpora", "python_docs"))  # the contract suite reads it whole, and the documents' commands run it
CHOICES.remove(("corpora", "python_questions"))  # as python_docs
CHOICES.remove(("corpora", "token_files"))  # there are no token files; tests/plugins/test_token_files.py has some
TRIED = [each for each in SHIPPED if each != ("metrics", "questions")]  # as corpora's: test_chat_evaluation.py
CHOICES += [(kind, ",".join(name for each, name in TRIED if each == kind)) for kind in sorted(TOGETHER)]


def setting(kind: str, names: str) -> str:
    """The one value that chooses components."""
    key = KINDS[kind].chosen_by
    return f"{key}={names}" if key.endswith(".name") else f"{key}=[{names}]"


def stage(kind: str) -> str:
    """The stage in which a kind's components work: the section of params.yaml that chooses them; models train."""
    section = KINDS[kind].chosen_by.partition(".")[0]
    return "train" if section == "model" else section


@pytest.mark.parametrize(("kind", "name"), CHOICES)
def test_one_value_chooses_a_component_and_it_works(kind: str, name: str, trained_project: Project) -> None:
    result = trained_project.succeed(stage(kind), "--set", setting(kind, name), "--set", "train.seed=5")
    if kind in ("losses", "optimizers"):
        assert f" {name}" in next(line for line in result.out.splitlines() if line.startswith("with"))
        metrics = json.loads((trained_project.root / "metrics" / "train.json").read_text())
        assert metrics["steps"] == 6
    if kind == "corpora":
        assert f"({name})" in result.out


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_its_options_are_in_the_schema_and_in_plugins_show(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.authoring.listing.Registry.load", lambda plugins: REGISTRY)
    schema = json.loads((REPOSITORY / "params.schema.json").read_text())
    *sections, key = KINDS[kind].chosen_by.split(".")[:-1]
    home = schema
    for section in sections:
        home = schema["$defs"][home["properties"][section]["$ref"].rpartition("/")[2]]
    known = home["properties"][key]["properties"][name]["properties"]
    shown = "\n".join(details(REPOSITORY / "plugins", name))
    options = next(entry for entry in REGISTRY.entries(kind) if entry.component.name == name).component.model_fields
    assert set(known) == set(options)
    for option, field in options.items():
        assert f"  {option}: " in shown
        assert field.description, f"{name}.{option} has no description"
