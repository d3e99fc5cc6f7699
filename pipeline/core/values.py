"""Values that a person, or another program, wrote: what is wrong with them, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.core.errors import DataError

T = TypeVar("T")

_EXPECTED = {"tuple_type": "a list", "dict_type": "a section of keys", "model_type": "a section of keys"}
_LONGEST = 80


def explain(error: ValueError, where: str = "", known: Sequence[str] = ()) -> str:
    """What is wrong, as one line: of a validation error each place, what is wrong there, and what is known.

    Args:
        error: pydantic's, or a plain one.
        where: The place of the whole value.
        known: The keys that there are.
    """
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    parts = []
    for item in error.errors():
        place = ".".join([where, *(str(part) for part in item["loc"])]).strip(".")
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such key" + (f" (there are: {', '.join(known)})" if known else "")
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"] in _EXPECTED:
            message = f"input should be {_EXPECTED[item['type']]}, not {_shown(item['input'])}"
        elif item["type"] != "value_error":
            message = f"{message[:1].lower()}{message[1:]}, not {_shown(item['input'])}"
        parts.append(f"{place}: {message}" if place else message)
    return "; ".join(parts[:6] + [f"and {len(parts) - 6} more"] * (len(parts) > 6))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def read_values(path: Path, kind: type[T], mend: str) -> T:
    """Reads JSON as what it must hold; `mend` says what to run when it is missing, damaged or holds something else.

    Raises:
        DataError: it cannot be used; names the file and the first places.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {mend}") from None
    except ValidationError as error:
        raise DataError(f"{path} is damaged ({explain(error)}): {mend}") from None
