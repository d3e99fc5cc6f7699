"""Validation of values that users or other programs wrote, with one-line messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, dataclasses
from pydantic_core import from_json

from pipeline.core.errors import DataError, PipelineError

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

_EXPECTED = {"tuple_type": "a list", "dict_type": "a section of keys", "model_type": "a section of keys"}
_LONGEST = 80


def explain(error: ValueError, where: str = "", known: Sequence[str] = ()) -> str:
    """The message of a validation error in one line: the key and the problem of each invalid value.

    Args:
        error: A pydantic ValidationError, or a plain ValueError.
        where: The dotted key of the validated value.
        known: The valid keys, for messages about an unknown one.
    """
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    parts = []
    for item in error.errors():
        key = ".".join([where, *(str(part) for part in item["loc"])]).strip(".")
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such key" + (f" (there are: {', '.join(known)})" if known else "")
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"] in _EXPECTED:
            message = f"input should be {_EXPECTED[item['type']]}, not {_shown(item['input'])}"
        elif item["type"] != "value_error":
            message = f"{message[:1].lower()}{message[1:]}, not {_shown(item['input'])}"
        parts.append(f"{key}: {message}" if key else message)
    return "; ".join(parts[:6] + [f"and {len(parts) - 6} more"] * (len(parts) > 6))


def _shown(value: object) -> str:
    try:
        text = repr(value)
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
