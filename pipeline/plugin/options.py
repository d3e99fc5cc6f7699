"""A component's options as a JSON schema, and the types of a schema in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic.errors import PydanticUserError

from pipeline.core.errors import PluginError
from pipeline.plugin.components import Component
from pipeline.plugin.registry import Entry

_TYPES = {
    "number": "a number",
    "integer": "a whole number",
    "string": "text",
    "boolean": "true or false",
    "object": "a section of keys",
    "array": "a list",
    "null": "null",
}
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} long",
    "maxLength": "at most {} long",
    "minItems": "of at least {}",
    "maxItems": "of at most {}",
    "pattern": "that matches {}",
}


def plain_options(component: Component) -> dict[str, Any]:
    """A component's options as params.yaml holds them; sets are sorted, so that equal options are equal text."""
    values: dict[str, Any] = component.model_dump(mode="json")
    sets = [name for name, value in component if isinstance(value, set | frozenset)]
    return values | {name: sorted(values[name], key=repr) for name in sets}


def options_schema(entry: Entry) -> dict[str, Any]:
    """The JSON schema of a component's options.

    Raises:
        PluginError: an option has a type that params.yaml cannot hold.
    """
    try:
        return entry.component.model_json_schema(by_alias=False)
    except PydanticUserError as error:
        shown = f"{entry.source}: {entry.component.__name__}"
        raise PluginError(f"{shown} has an option whose type params.yaml cannot hold: {error.message}") from None


def type_in_words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A type of a JSON schema in words, with its bounds."""
    if "$ref" in schema:
        return type_in_words(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_in_words(each, definitions) for each in schema["anyOf"]))
    if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " or ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    words = _TYPES.get(schema.get("type", ""), "any value")
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    words += f" {' and '.join(bounds)}" if bounds else ""
    inner = schema.get("items") or schema.get("additionalProperties")
    return f"{words}, each {type_in_words(inner, definitions)}" if isinstance(inner, dict) else words
