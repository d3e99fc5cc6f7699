"""The options of components: validation, plain values, JSON schema, and descriptions of types."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Set
from datetime import date
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import PydanticJsonSchemaWarning

from pipeline.core.errors import ParamsError, PluginError, describe_exception
from pipeline.core.values import explain
from pipeline.plugin.calls import calling
from pipeline.plugin.components import Component

C = TypeVar("C", bound=Component)

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


def with_options(component: type[C], options: Mapping[str, Any], where: str) -> C:
    """Builds a component from options as YAML can express them: a list for a tuple or a set, text for a path or a
    date.

    Raises:
        ParamsError: an option is unknown, out of bounds or has the wrong type; the message names its key below
            `where`.
        PluginError: the component's code raised an exception.
    """
    try:
        text = json.dumps(options, default=_date_to_text, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ParamsError(
            f"{where}: an option has a value of an unsupported type: {describe_exception(error)}"
        ) from None
    with calling(component, when=f"with the options under {where}"):
        try:
            return component.model_validate_json(text)
        except ValidationError as error:
            raise ParamsError(explain(error, json.loads(text), where, list(component.model_fields))) from None


def _date_to_text(value: Any) -> str:
    """Turns dates, which YAML parses, back into text."""
    if isinstance(value, date):  # or its subclass datetime
        return value.isoformat()
    raise TypeError(f"{value!r} is not text, a number, a list or a section")


def plain_options(component: Component) -> dict[str, Any]:
    """The component's options as plain values for params.yaml. Sets are sorted, so that equal options give equal
    text.

    Raises:
        PluginError: the component's code raised an exception, or YAML cannot express a value.
    """
    with calling(component):
        options: dict[str, Any] = _sorted(component.model_dump(mode="json", warnings=False), component)
    return options


def _sorted(plain: Any, value: Any) -> Any:
    """`plain`, with the elements of each set in `value` sorted."""
    if isinstance(plain, dict):
        get = value.get if isinstance(value, Mapping) else partial(getattr, value)
        return {key: _sorted(each, get(key, None)) for key, each in plain.items()}
    if isinstance(plain, list) and isinstance(value, Collection):
        elements = [_sorted(*pair) for pair in zip(plain, value, strict=True)]
        return sorted(elements, key=repr) if isinstance(value, Set) else elements
    return plain


def options_schema(component: type[Component], prefix: str = "") -> dict[str, Any]:
    """The JSON schema of the component's options. `prefix` is put before the names of its definitions.

    Raises:
        PluginError: YAML cannot express the type of an option.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PydanticJsonSchemaWarning)  # a default that JSON lacks is left out
            schema = component.model_json_schema(by_alias=False, ref_template=f"#/$defs/{prefix}{{model}}")
    except PydanticUserError as error:
        raise PluginError(
            f"{component.__name__} has an option with a type that params.yaml cannot express: {error.message}"
        ) from None
    if "$defs" in schema:
        schema["$defs"] = {f"{prefix}{name}": each for name, each in schema["$defs"].items()}
    return schema


def type_in_words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Describes the type and bounds in a JSON schema, such as "a whole number ≥ 1"."""
    if "$ref" in schema:
        return type_in_words(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(type_in_words(each, definitions) for each in branches))
    if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " or ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    if parts := schema.get("prefixItems"):
        return f"a list of {len(parts)}: {', '.join(type_in_words(part, definitions) for part in parts)}"
    words = _TYPES.get(schema.get("type", ""), "any value")
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    words += f" {' and '.join(bounds)}" if bounds else ""
    inner = schema.get("items") or schema.get("additionalProperties")
    return f"{words}, each {type_in_words(inner, definitions)}" if isinstance(inner, dict) else words
