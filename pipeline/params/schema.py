"""params.schema.json, made from the params models: with it, editors complete and explain params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.params.params import Choice, Params
from pipeline.plugin.components import KINDS
from pipeline.plugin.options import options_schema
from pipeline.plugin.registry import Registry

PLACES = {tuple(kind.chosen_by.split(".")[:2]): kind.plural for kind in KINDS.values()}
"""Where params.yaml chooses components, as (section, key), and of which kind."""


def schema(plugins: Path) -> dict[str, Any]:
    """The JSON schema of params.yaml, with the options of every component."""
    registry = Registry.load(plugins)
    whole = Params.model_json_schema()
    definitions = whole["$defs"]
    for (section, key), kind in PLACES.items():
        model: Any = Params.model_fields[section].annotation
        field = model.model_fields[key]
        components = [entry.component for entry in registry.entries(kind)]
        options = {each.name: options_schema(each, prefix=f"{kind}.{each.name}.") for each in components}
        for each in options.values():
            each.pop("title", None)
            definitions |= each.pop("$defs", {})
        names = list(options)
        one = issubclass(field.annotation, Choice)
        chosen = {"enum": names} if one else {"type": "array", "items": {"enum": names}, "uniqueItems": True}
        name = "name" if one else "use"
        own = definitions[field.annotation.__name__]["properties"]
        definitions[model.__name__]["properties"][key] = {
            **({"description": field.description} if field.description else {}),
            "type": "object",
            "additionalProperties": False,
            "required": list(own),
            "properties": {**own, name: chosen, **options},
        }
    for unused in ("Choice", "Choices", "ScheduleParams"):
        definitions.pop(unused, None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "title": "params.yaml"}
