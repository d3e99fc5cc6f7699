"""Messages about invalid values name the key as a person wrote it, never the types that pydantic tries."""

from __future__ import annotations

import datetime
import enum
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from pipeline.core.values import explain


class Record(BaseModel):
    """A base of the made-up records, as strict as params and options are."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Color(enum.Enum):
    """Two words."""

    RED = "red"
    BLUE = "blue"


class Size(Record):
    """A section with one key."""

    size: int


class Pair(Record):
    """A section with another key."""

    pair: tuple[int, int] = (1, 1)


Positive = Annotated[int, Field(ge=1)]

CASES: dict[str, tuple[Any, Any, dict[str, tuple[str, ...]]]] = {
    "bool or literal": (bool | Literal["auto", "all"], "no", {"x": ("true", "'auto'", "'all'", "not 'no'")}),
    "number or literal": (Positive | Literal["auto"], 0, {"x": ("equal to 1", "'auto'", "not 0")}),
    "optional number": (int | None, "1", {"x": ("a whole number", "not '1'")}),
    "null": (int | Literal["auto"], None, {"x": ("a whole number", "not null")}),
    "values in a list": (int | Literal["auto"], [True, None], {"x": ("a whole number", "not [true, null]")}),
    "optional union": (bool | Literal["auto"] | None, 3, {"x": ("false", "'auto'", "not 3")}),
    "enum or literal": (Color | Literal["none"], "green", {"x": ("'red'", "'blue'", "'none'", "not 'green'")}),
    "path or date": (Path | datetime.date, 3, {"x": ("text", "a valid date", "not 3")}),
    "text or flag": (bool | Annotated[str, Field(min_length=2)], "a", {"x": ("true", "2 characters", "not 'a'")}),
    "list": (list[int], ["a"], {"x.0": ("a whole number", "not 'a'")}),
    "list of unions": (list[bool | Literal["auto"]], [True, 2], {"x.1": ("false", "'auto'", "not 2")}),
    "list or number": (list[int] | float, [1, "a"], {"x.1": ("a whole number", "not 'a'")}),
    "neither list nor number": (list[int] | float, "a", {"x": ("a list", "a number", "not 'a'")}),
    "short tuple": (tuple[int, int] | int, [1], {"x.1": ("is missing",)}),
    "set": (frozenset[str] | None, [1], {"x.0": ("text", "not 1")}),
    "mapping": (dict[str, int | Literal["all"]], {"a": 1, "b": "2"}, {"x.b": ("a whole number", "'all'", "'2'")}),
    "mapping or list": (dict[str, int] | list[int], {"a": "b"}, {"x.a": ("a whole number", "not 'b'")}),
    "key of a mapping": (dict[Literal["a", "b"], int] | str, {"c": 1}, {"x.c": ("the key", "'a'", "'b'")}),
    "key named as a type": (dict[str, int] | bool, {"bool": "b"}, {"x.bool": ("a whole number", "not 'b'")}),
    "section with a type's name": (bool | Literal["auto"], {"bool": 3}, {"x": ("true", "'auto'", '{"bool": 3}')}),
    "section": (Size, {"size": "a"}, {"x.size": ("a whole number", "not 'a'")}),
    "optional section": (Size | None, {"sise": 1}, {"x.size": ("is missing",), "x.sise": ("no such key",)}),
    "one of two sections": (Size | Pair, {"size": "a"}, {"x.size": ("a whole number", "not 'a'")}),
    "no section": (Size | Pair | Literal["none"], 3, {"x": ("a section of keys", "'none'", "not 3")}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_message_names_the_key_the_value_and_what_is_allowed(case: str) -> None:
    kind, value, expected = CASES[case]
    model = create_model("Model", __base__=Record, x=(kind, ...))
    with pytest.raises(ValidationError) as raised:
        model.model_validate_json(json.dumps({"x": value}))
    problems = dict(part.split(": ", 1) for part in explain(raised.value, {"x": value}).split("; "))
    assert problems.keys() == expected.keys()
    for key, tokens in expected.items():
        assert all(token in problems[key] for token in tokens), problems[key]


class Tree(Record):
    """A record of records."""

    a: Tree | int


def test_a_key_of_many_equal_parts_is_found_at_once() -> None:
    values: Any = "leaf"
    for _ in range(40):
        values = {"a": values}
    with pytest.raises(ValidationError) as raised:
        Tree.model_validate(values)
    assert explain(raised.value, values).startswith(f"{'.'.join('a' * 40)}: input should be ")


def test_without_the_values_a_location_is_taken_as_it_is() -> None:
    with pytest.raises(ValidationError) as raised:
        Size.model_validate({"size": "a"})
    assert explain(raised.value, where="a.b").startswith("a.b.size: ")
