"""YAML as DVC reads it, within limits of size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, DocumentStartEvent, NodeEvent, ScalarEvent
from ruamel.yaml.parser import Parser

from pipeline.core.errors import check_not_endless

_LONGEST = 1 << 18
"""The maximum number of characters, for which the reader takes seconds; params.yaml has thousands."""
_MOST_VALUES = 100_000
_DEEPEST = 50


def yaml_values(text: str) -> Any:
    """Parses YAML 1.2: `1e-3` is a number, `yes` is a string, and tags do not build Python objects.

    Only values that JSON has are allowed: mappings with string keys, lists, strings, numbers, true, false and null.

    Raises:
        YAMLError: the text is not valid YAML, has other values, or is too large.
    """
    if len(text) > _LONGEST:
        raise YAMLError(f"it has over {_LONGEST:,} characters: it must be a file of settings, not of data")
    reader = YAML(typ="safe", pure=True)
    reader.Parser = _Parser
    try:
        values = reader.load(io.StringIO(text))
        _check(values, "")
    except YAMLError:
        raise
    except Exception as error:  # the library's: month 13, !!bool maybe, 4,301 digits, …
        raise YAMLError(f"a value cannot be read ({' '.join(str(error).split())}): put text into quotes") from None
    return values


def read_yaml(path: Path) -> str:
    """The text of a YAML file, without a byte order mark, up to the size that `yaml_values` accepts.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read as UTF-8.
    """
    if not path.is_relative_to("/dev"):  # as the shell's <(…) is
        check_not_endless(path)
    with path.open(encoding="utf-8-sig") as file:
        return file.read(_LONGEST + 1)


class _Parser(Parser):
    """Rejects YAML that would take the reader too much time or memory, before it builds values.

    An alias counts as all values of its anchor: nine lines of nine aliases each would stand for 9⁹ values.
    """

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._sizes: dict[str, int] = {}
        self._opened: list[tuple[str | None, int]] = []
        self._count = self._documents = 0

    def get_event(self) -> Any:
        event = super().get_event()
        self._documents += isinstance(event, DocumentStartEvent)
        if isinstance(event, AliasEvent):
            if event.anchor in [anchor for anchor, _ in self._opened]:
                raise YAMLError(f"*{event.anchor} is inside &{event.anchor}: write the value out")
            self._count += self._sizes.get(event.anchor, 1)
        elif isinstance(event, NodeEvent):
            self._count += 1
            if not isinstance(event, ScalarEvent):
                self._opened.append((event.anchor, self._count))
            elif event.anchor:
                self._sizes[event.anchor] = 1
        elif isinstance(event, CollectionEndEvent):
            anchor, before = self._opened.pop()
            if anchor:
                self._sizes[anchor] = self._count - before + 1
        if self._documents > 1:
            raise YAMLError("it holds several documents (---): keep one")
        if len(self._opened) > _DEEPEST:
            raise YAMLError(f"it is nested more than {_DEEPEST} deep: a bracket may be missing")
        if self._count > _MOST_VALUES:
            raise YAMLError(f"its aliases stand for over {_MOST_VALUES:,} values: write the values out")
        return event


def _check(value: Any, where: str) -> None:
    """Rejects values that JSON lacks; the message has the dotted key."""
    name = where.rstrip(".") or "it"
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise YAMLError(f"the key {key!r} of {name} is not a string: put it into quotes")
            _check(each, f"{where}{key}.")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _check(each, f"{where}{number}.")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise YAMLError(f"{name} is an integer of more than 64 bits: choose a smaller one")
    elif value is not None and not isinstance(value, str | float):
        raise YAMLError(f"{name} is a {type(value).__name__}: put strings into quotes, and remove tags")
