"""The base class of all components."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Component(BaseModel, ABC):
    """A named plugin class with validated options and one method that does the work."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_by_name=True,  # params.yaml uses the field name, even if the field has an alias
        validate_by_alias=True,
    )
    name: ClassVar[str]
