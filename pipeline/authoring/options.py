"""Checks that params.yaml can set each option of a component, with values generated from its JSON schema."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipeline.core.errors import PipelineError
from pipeline.plugin.components import Component
from pipeline.plugin.options import options_schema, plain_options, type_in_words, with_options

_FORMATS = {
    "date": "2024-05-06",
    "date-time": "2024-05-06T07:08:09",
    "time": "07:08:09",
    "duration": "PT5M",
    "uuid": "12345678-1234-4234-8234-123456789abc",
    "uri": "http://example.org/",
}
_UNDECIDED = {"value_error", "assertion_error", "string_pattern_mismatch"}
"""Errors from validators of the component, which may reject a generated value of the right type."""


def check_options(component: Component) -> None:
    """Converts the options of `component` to plain values and back, then tries generated values for each option.

    Raises:
        AssertionError: an option cannot be set from params.yaml.
    """
    cls = type(component)
    try:
        plain = plain_options(component)
        again = plain_options(with_options(cls, plain, "options"))
    except PipelineError as error:
        raise AssertionError(f"params.yaml must be able to express the options: {error}") from error
    assert again == plain, f"the options must be unchanged after writing and reading: {plain}, {again}"
    schema = options_schema(cls)
    definitions = schema.get("$defs", {})
    for name, option in schema.get("properties", {}).items():
        for branch in option.get("anyOf") or option.get("oneOf") or [option]:
            refused = [_refusal(cls, name, value) for value in _values(branch, definitions)]
            assert not refused or not all(refused), (
                f"the option {name} cannot be set from params.yaml: {type_in_words(branch, definitions)}, such as "
                f"{refused[0]}"
            )


def _refusal(cls: type[Component], name: str, value: Any) -> str:
    """The value with the reason why it is rejected; empty if it is accepted, or rejected by the component's
    validator."""
    try:
        built = cls.model_validate_json(json.dumps({name: value}))
    except ValidationError as error:
        first = error.errors()[0]
        return "" if first["type"] in _UNDECIDED else f"{value!r}: {first['msg']}"
    try:
        plain = plain_options(built)
        again = plain_options(with_options(cls, plain, "options"))
    except PipelineError as error:
        return f"{value!r}: {error}"
    return "" if again == plain else f"{value!r}, which changes when it is written and read"


def _values(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int = 4) -> list[Any]:
    """A few JSON values of the schema's type, within its bounds."""
    if "$ref" in schema:
        return _values(definitions[schema["$ref"].rpartition("/")[2]], definitions, depth - 1) if depth else []
    if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return list(choices)
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return [value for branch in branches for value in _values(branch, definitions, depth)]
    match schema.get("type"):
        case "boolean":
            return [True, False]
        case "null":
            return [None]
        case "integer" | "number" as kind:
            return _numbers(schema, whole=kind == "integer")
        case "string":
            text = "text" * max(1, schema.get("minLength", 0))
            return [_FORMATS.get(schema.get("format", ""), text[: schema.get("maxLength")]), "1"]
        case "array":
            parts = schema.get("prefixItems") or [schema.get("items", {})] * max(1, schema.get("minItems", 1))
            items = [_values(part, definitions, depth) for part in parts]
            return [[each[n % len(each)] for n, each in enumerate(items)]] if all(items) else [[]]
        case "object":
            found = {name: _values(each, definitions, depth) for name, each in schema.get("properties", {}).items()}
            if isinstance(inner := schema.get("additionalProperties"), dict):
                keys = _values(schema.get("propertyNames", {}), definitions) if "propertyNames" in schema else ["1"]
                found[str(keys[0])] = _values(inner, definitions, depth)
            return [{name: values[0] for name, values in found.items() if values}]
    return ["text", 1]


def _numbers(schema: Mapping[str, Any], whole: bool) -> list[Any]:
    step = schema.get("multipleOf", 1 if whole else 0.25)
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None and high is not None and not whole:
        return [low + (high - low) * share for share in (0.5, 0.25)]
    if low is None and high is not None:
        first = math.floor(high / step) * step
        return [first - step, first]
    first = math.ceil((low or 0) / step) * step
    first += step if first == schema.get("exclusiveMinimum") else 0
    return [first, first + step, first + 2 * step]
