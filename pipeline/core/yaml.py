"""YAML as DVC reads it."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def yaml_values(text: str) -> Any:
    """YAML 1.2: `1e-3` is a number, `yes` is text, and no tag builds a Python object.

    Raises:
        YAMLError: the text is no YAML, or a value cannot be read.
    """
    try:
        return YAML(typ="safe", pure=True).load(io.StringIO(text))
    except (ValueError, KeyError, RecursionError) as error:  # a date's month 13, !!bool maybe, [[[[…
        raise YAMLError(f"a value cannot be read ({error}): put text into quotes") from None
