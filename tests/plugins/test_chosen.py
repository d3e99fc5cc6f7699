"""Every shipped component is chosen by setting one value, and does its work in a real stage."""

from __future__ import annotations

import json

import pytest
from conftest import REPOSITORY, Project
from ruamel.yaml import YAML

from pipeline.params.schema import PLACES
from pipeline.plugin.components import KINDS
from pipeline.plugin.registry import Registry

WORKS_IN = {
    "corpora": "tokenize", "losses": "train", "optimizers": "train", "schedules": "train",
    "eval_callbacks": "train", "samplers": "evaluate", "metrics": "evaluate",
    "exporters": "export",
}  # fmt: skip
REGISTRY = Registry.load(REPOSITORY / "plugins")
SHIPPED = [(kind, name) for kind in KINDS for name in REGISTRY.names(kind)]


def setting(kind: str, name: str) -> str:
    """The one value that chooses a component."""
    section, key = next(place for place, plural in PLACES.items() if plural == kind)
    params = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    single = "name" in params[section][key]
    return f"{section}.{key}.name={name}" if single else f"{section}.{key}.use=[{name}]"


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_one_value_chooses_a_component_and_it_works(kind: str, name: str, trained_project: Project) -> None:
    result = trained_project.succeed(WORKS_IN[kind], "--set", setting(kind, name), "--set", "train.seed=5")
    if kind in ("losses", "optimizers"):
        assert f" {name}" in next(line for line in result.out.splitlines() if line.startswith("with"))
        metrics = json.loads((trained_project.root / "metrics" / "train.json").read_text())
        assert metrics["steps"] == 6
    if kind == "corpora":
        assert f"({name})" in result.out


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_its_options_are_in_the_schema_and_in_plugins_show(kind: str, name: str, project: Project) -> None:
    schema = json.loads((REPOSITORY / "params.schema.json").read_text())
    section, key = next(place for place, plural in PLACES.items() if plural == kind)
    reference = schema["properties"][section]["$ref"].rpartition("/")[2]
    known = schema["$defs"][reference]["properties"][key]["properties"][name]["properties"]
    shown = project.call(["plugins", "show", name]).out
    options = next(entry for entry in REGISTRY.entries(kind) if entry.component.name == name).component.model_fields
    assert set(known) == set(options)
    for option, field in options.items():
        assert f"  {option}: " in shown
        assert field.description, f"{name}.{option} has no description"
