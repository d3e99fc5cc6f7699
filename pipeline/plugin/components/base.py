"""What every component is."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Component(BaseModel, ABC):
    """What every component is: a name, options that check themselves, and one working method."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_by_name=True,  # params.yaml, too, calls an option with an alias by its name
        validate_by_alias=True,
    )
    name: ClassVar[str]
