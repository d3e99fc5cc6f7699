"""Validation of values that users or other programs wrote, with one-line messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, dataclasses
from pydantic_core import ErrorDetails, from_json

from pipeline.core.errors import DataError, PipelineError, check_not_endless

T = TypeVar("T")

Dimension = Annotated[int, Field(gt=0, lt=2**31)]
LayerCount = Annotated[int, Field(gt=0, le=10_000)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**63)]
InMemoryCount = Annotated[int, Field(gt=0, le=2**20)]
"""A count of things in memory at the same time: windows of a batch, or tokens of a generated text."""

DEVICE = r"^(auto|cpu|mps|cuda(:\d{1,3})?)$"

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""For records of this version: exactly the declared fields, finite numbers."""
OPEN = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
"""For records with further fields, which are ignored."""

_WORDS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "dataclass_type": "a section of keys",
    "none_required": "null",
}
"""What is allowed instead of a value of another type, in YAML's terms, by pydantic's name of the error."""
_SHOULD_BE = "Input should be "
_LONGEST = 80

Key = tuple[str | int, ...]


def explain(error: ValueError, values: object = None, where: str = "", known: Sequence[str] = ()) -> str:
    """The message of a validation error in one line: the key and the problem of each invalid value.

    Args:
        error: A pydantic ValidationError, or a plain ValueError.
        values: The values that were validated; see `invalid_keys`.
        where: The dotted key of these values.
        known: Their valid keys, for messages about an unknown one.
    """
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    parts = []
    for key, items in invalid_keys(error, values).items():
        dotted = ".".join([where, *map(str, key)]).strip(".")
        problem = _problem(items, known if len(key) == 1 else ())
        parts.append(f"{dotted}: {problem}" if dotted else problem)
    return "; ".join(parts[:6] + [f"and {len(parts) - 6} more"] * (len(parts) > 6))


def invalid_keys(error: ValidationError, values: object) -> dict[Key, list[ErrorDetails]]:
    """The key of each invalid value, with its errors: several if its type is a union.

    pydantic adds the types of a union to the locations of errors. So a part of a location that does not lead to a
    value in `values` is left out; without `values`, locations are taken as they are.
    """
    found: dict[Key, list[ErrorDetails]] = {}
    for item in error.errors():
        found.setdefault(_key(item, values), []).append(item)
    # The type of a union that accepted a list or section, but not what is in it, is the one that was meant.
    parents = {key[:length] for key in found for length in range(len(key))}
    return {key: items for key, items in found.items() if key not in parents}


def _key(item: ErrorDetails, values: Any) -> Key:
    location, end = item["loc"], item["loc"][-1:] if item["type"] == "missing" else ()
    if values is None:
        return location
    location = location[: len(location) - len(end)]
    first, _ = next(_keys(location, values))
    # A section may have a key that is also the name of a type: `input` tells the value of the error.
    return next((key for key, value in _keys(location, values) if value == item["input"]), first) + end


def _keys(location: Key, value: Any) -> Iterator[tuple[Key, Any]]:
    """The keys that a location may mean, with their values: the longest first. There may be 2ⁿ of n equal parts."""
    if not location:
        yield (), value
        return
    with suppress(LookupError, TypeError):
        yield from (((location[0], *key), found) for key, found in _keys(location[1:], value[location[0]]))
    yield from _keys(location[1:], value)


def _problem(items: Sequence[ErrorDetails], known: Sequence[str]) -> str:
    """What is wrong with a value; each item is the error of one of the types that it may have."""
    allowed, problems = [], []
    for item in [each for each in items if each["type"] != "extra_forbidden"] or items:
        kind, text = item["type"], item["msg"].removeprefix("Value error, ")
        should = _WORDS.get(kind) or (text.removeprefix(_SHOULD_BE) if text.startswith(_SHOULD_BE) else "")
        if kind == "extra_forbidden":
            problems.append("there is no such key" + (f" (there are: {', '.join(known)})" if known else ""))
        elif kind == "missing":
            problems.append("is missing")
        elif kind == "value_error":
            problems.append(text)
        elif should and item["loc"][-1:] == ("[key]",):
            problems.append(f"the key should be {should}")
        elif should:
            allowed.append(should)
        else:
            problems.append(f"{text[:1].lower()}{text[1:]}, not {_shown(item['input'])}")
    if allowed:
        words = " or ".join(dict.fromkeys(allowed))
        problems.insert(0, f"input should be {words}, not {_shown(items[0]['input'])}")
    return ", or ".join(dict.fromkeys(problems))


def as_yaml(value: object) -> str:
    """A value in one line, as params.yaml may have it.

    Raises:
        ValueError, RecursionError: it is too large, or it contains itself.
    """
    if value is None or isinstance(value, bool | list | dict):
        with suppress(TypeError):  # a key that JSON lacks
            return json.dumps(value, ensure_ascii=False, default=repr)
    return repr(value)


def _shown(value: object) -> str:
    try:
        text = as_yaml(value)
    except (ValueError, RecursionError):  # Python refuses integers of more than 4,300 digits
        text = "a value that is too long to print"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def check_fields(kind: type[T], fields: Mapping[str, Any]) -> T:
    """Validates a dataclass from values that are not JSON, such as tensors.

    Raises:
        ValidationError: a field is missing, unknown, or of another type.
    """
    frozen: bool = vars(kind)["__dataclass_params__"].frozen
    checked: Any = dataclasses.dataclass(kind, frozen=frozen)
    made: T = checked(**fields)
    return made


def read_values(path: Path, kind: type[T], fix: str, raised: type[PipelineError] = DataError) -> T:
    """Reads a JSON file and validates it as `kind`.

    Raises:
        DataError (or `raised`): it is missing, corrupt or invalid; `fix` ends the message.
    """
    check_not_endless(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise raised(f"{path} is missing: {fix}") from None
    return parse_values(content, kind, str(path), fix, raised)


def parse_values(
    content: str | bytes, kind: type[T], what: str, fix: str, raised: type[PipelineError] = DataError
) -> T:
    """As `read_values`, for JSON content; `what` names it in messages."""
    try:
        made = TypeAdapter(kind).validate_json(content, strict=True)
        json.dumps(from_json(content), allow_nan=False)  # `Any` accepts NaN and infinity, such as 1e999
        return made
    except ValueError as error:
        raise raised(f"{what} is damaged ({explain(error)}): {fix}") from None
