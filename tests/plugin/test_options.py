"""Options of every type can be set from params.yaml, and are recorded as params.yaml holds them."""

from __future__ import annotations

import datetime
import decimal
import enum
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import torch
from pydantic import BaseModel, Field, create_model

from pipeline.authoring.options import check_options
from pipeline.core.errors import ParamsError, PluginError
from pipeline.plugin.components import Sampler
from pipeline.plugin.options import options_schema, plain_options, type_in_words, with_options


class Color(enum.Enum):
    """An option of a few values."""

    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    """A section of options."""

    size: int = 1
    pair: tuple[int, str] = (1, "a")


class Base(Sampler):
    """A sampler."""

    name: ClassVar[str] = "base"

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return logits


def sampler(option: Any, default: Any) -> type[Base]:
    made: type[Base] = create_model("Made", __base__=Base, option=(option, default))
    return made


TYPES: dict[str, tuple[Any, Any, Any, str]] = {
    "tuple": (tuple[float, float], (0.9, 0.99), [0.5, 0.25], "a list of 2: a number, a number"),
    "long tuple": (tuple[int, ...], (), [1, 2, 3], "a list, each a whole number"),
    "set": (set[int], {1}, [2, 3], "a list, each a whole number"),
    "frozenset": (frozenset[str], frozenset(), ["a", "b"], "a list, each text"),
    "path": (Path, Path("x"), "a/b", "text"),
    "enum": (Color, Color.RED, "blue", '"red" or "blue"'),
    "literal": (Literal["a", 1], "a", 1, '"a" or 1'),
    "section": (dict[str, set[str]], {}, {"k": ["a", "b"]}, "a section of keys, each a list, each text"),
    "model": (Inner, Inner(), {"size": 2, "pair": [3, "b"]}, "a section of keys"),
    "optional": (tuple[int, int] | None, None, [1, 2], "a list of 2: a whole number, a whole number or null"),
    "date": (datetime.date, datetime.date(2020, 1, 1), "2024-05-06", "text"),
    "decimal": (decimal.Decimal, decimal.Decimal(1), "2.25", "a number or text"),
    "dict": (
        dict[str, Annotated[float, Field(gt=0)]],
        {"a": 1.0},
        {"b": 2.5},
        "a section of keys, each a number > 0",
    ),
    "pattern": (re.Pattern, re.compile("a"), "b+", "text"),
}


@pytest.mark.parametrize("case", TYPES)
def test_an_option_is_set_as_yaml_holds_it_and_recorded_so(case: str) -> None:
    option, default, value, words = TYPES[case]
    component = sampler(option, default)
    schema = options_schema(component)
    assert type_in_words(schema["properties"]["option"], schema.get("$defs", {})) == words
    assert with_options(component, plain_options(component()), "x") == component()
    chosen = with_options(component, {"option": value}, "x")
    assert chosen != component()
    assert plain_options(chosen) == {"option": value}
    check_options(component())


def test_yaml_reads_a_date_as_one() -> None:
    component = sampler(datetime.date, datetime.date(2020, 1, 1))
    day = datetime.date(2024, 5, 6)
    assert with_options(component, {"option": day}, "x") == component(option=day)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("option", "default"),
    [(Literal[Color.RED], Color.RED), (Literal[Color.RED] | None, None), (Literal[b"x"], b"x")],
)
def test_what_yaml_can_never_express_breaks_the_contract(option: Any, default: Any) -> None:
    with pytest.raises(AssertionError, match="option"):
        check_options(sampler(option, default)())


def test_a_type_without_a_schema_is_refused() -> None:
    with pytest.raises(PluginError, match=r"params\.yaml"):
        options_schema(sampler(Callable, len))


@pytest.mark.parametrize(
    "value",
    [float("nan"), 10**400, 10**5000, "\ud800", True, None, b"x", {(1, 2): 3}, "3"],
    ids=["nan", "large", "larger", "surrogate", "bool", "null", "bytes", "keys", "text"],
)
def test_a_value_of_another_type_is_one_line(value: Any) -> None:
    with pytest.raises(ParamsError, match=r"^train\.x") as error:
        with_options(sampler(float, 0.5), {"option": value}, "train.x")
    assert "\n" not in str(error.value)


def test_an_option_with_an_alias_goes_by_its_name() -> None:
    component = sampler(float, Field(0.5, alias="other"))
    assert plain_options(with_options(component, {"option": 1.5}, "x")) == {"option": 1.5}


@pytest.mark.filterwarnings("error")
def test_a_default_that_is_no_json_gives_no_warning() -> None:
    schema = options_schema(sampler(type[int], int))
    assert "default" not in schema["properties"]["option"]
    assert plain_options(sampler(int, "text")()) == {"option": "text"}
