"""params.schema.json, generated from the params models: editors use it to complete and explain params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.params.params import Choice, Params
from pipeline.plugin.components import KINDS
from pipeline.plugin.options import options_schema
from pipeline.plugin.registry import Registry

COMPONENT_SECTIONS = {kind.chosen_by.rpartition(".")[0]: kind.plural for kind in KINDS.values()}
"""The sections of params.yaml that choose components, with the kind of the components."""


def schema(plugins: Path) -> dict[str, Any]:
    """The JSON schema of params.yaml, including the options of every component."""
    registry = Registry.load(plugins)
    whole = Params.model_json_schema()
    definitions = whole["$defs"]
    choices: set[str] = set()
    for dotted, kind in COMPONENT_SECTIONS.items():
        section, _, key = dotted.partition(".")
        field = Params.model_fields[section]
        home = whole["properties"]
        if key:
            model: Any = field.annotation
            field, home = model.model_fields[key], definitions[model.__name__]["properties"]
        components = [entry.component for entry in registry.entries(kind)]
        options = {each.name: options_schema(each, prefix=f"{kind}.{each.name}.") for each in components}
        for each in options.values():
            each.pop("title", None)
            definitions |= each.pop("$defs", {})
        names = list(options)
        choice: Any = field.annotation
        one = issubclass(choice, Choice)
        chosen = {"enum": names} if one else {"type": "array", "items": {"enum": names}, "uniqueItems": True}
        common = definitions[choice.__name__]["properties"]
        home[key or section] = {
            **({"description": field.description} if field.description else {}),
            "type": "object",
            "additionalProperties": False,
            "required": list(common),
            "properties": {**common, "name" if one else "use": chosen, **options},
        }
        choices.add(choice.__name__)
    for unused in choices:
        definitions.pop(unused)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "title": "params.yaml"}
