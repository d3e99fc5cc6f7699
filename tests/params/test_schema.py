"""params.schema.json: current, complete, and of one mind with the models."""

from __future__ import annotations

import json
from typing import Any

from conftest import REPOSITORY, Project
from ruamel.yaml import YAML

from pipeline.params.reference import reference
from pipeline.params.schema import COMPONENT_SECTIONS, schema
from pipeline.plugin.components import KINDS

SHIPPED = json.loads((REPOSITORY / "params.schema.json").read_text())


def test_the_shipped_schema_is_current_else_run_pipeline_schema() -> None:
    assert schema(REPOSITORY / "plugins") == SHIPPED


def test_the_shipped_reference_is_current_else_run_pipeline_schema() -> None:
    assert reference(REPOSITORY / "plugins") == (REPOSITORY / "docs" / "params.md").read_text()


def test_the_reference_has_a_row_for_every_key_of_params_yaml() -> None:
    text = (REPOSITORY / "docs" / "params.md").read_text()
    missing = [key for key in leaves(YAML(typ="safe").load(REPOSITORY / "params.yaml")) if f"`{key}`" not in text]
    assert missing == []


FREE = {"options", "encodings", "shares"}
"""Options whose keys a person chooses: one row each."""


def leaves(values: Any, path: str = "") -> list[str]:
    """Every key that holds a value."""
    if path.rpartition(".")[2] in FREE or not isinstance(values, dict):
        return [path]
    return [leaf for key, value in values.items() for leaf in leaves(value, f"{path}.{key}".strip("."))]


def test_every_kind_of_component_has_its_place() -> None:
    assert sorted(COMPONENT_SECTIONS.values()) == sorted(KINDS)


def undescribed(value: dict[str, Any], path: str = "") -> list[str]:
    """The keys that an editor could not explain."""
    found = []
    for key, field in value.get("properties", {}).items():
        place = f"{path}.{key}"
        section = "$ref" in field or field.get("type") == "object"
        chosen = key in ("name", "use")
        found += [place] if not ("description" in field or section or chosen) else []
        found += undescribed(field, place)
    return found


def test_every_key_is_explained() -> None:
    definitions = SHIPPED["$defs"].items()
    assert [place for name, value in definitions for place in undescribed(value, name)] == []


def missing(schema: dict[str, Any], values: Any, path: str = "params") -> list[str]:
    """The keys of params.yaml that the schema does not know."""
    if "$ref" in schema:
        schema = SHIPPED["$defs"][schema["$ref"].rpartition("/")[2]]
    if not isinstance(values, dict) or "properties" not in schema:
        return []
    known = schema["properties"]
    unknown = [f"{path}.{key}" for key in values if key not in known]
    deeper = [missing(known[key], value, f"{path}.{key}") for key, value in values.items() if key in known]
    return unknown + [place for places in deeper for place in places]


def test_the_schema_knows_every_key_of_params_yaml() -> None:
    assert missing(SHIPPED, YAML(typ="safe").load(REPOSITORY / "params.yaml")) == []


def test_a_new_plugin_is_in_the_schema_that_the_command_writes(project: Project) -> None:
    source = (project.root / "plugins" / "samplers" / "greedy.py").read_text()
    (project.root / "plugins" / "samplers" / "mine.py").write_text(source.replace('"greedy"', '"mine"'))
    assert project.call(["schema"]).code == 0
    written = json.loads((project.root / "params.schema.json").read_text())
    samplers = written["$defs"]["EvaluateParams"]["properties"]["samplers"]["properties"]
    assert "mine" in samplers
    assert "mine" in samplers["use"]["items"]["enum"]
