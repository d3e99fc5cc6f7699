"""Reads params.yaml and `--set`; errors name the key and the valid values."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml.error import YAMLError

from pipeline.core.errors import ParamsError
from pipeline.core.values import explain, invalid_keys
from pipeline.core.yaml import read_yaml, yaml_values
from pipeline.params.params import Choice, Choices, Params

_DEEPEST = 50
"""The maximum number of parts of a key of `--set`."""


def load_params(path: Path, overrides: Iterable[str] = ()) -> Params:
    """Reads a params file, applies the overrides (`section.key=value`, the value as YAML), and validates the
    result.

    Raises:
        ParamsError: the file or an override cannot be read, or a value is invalid; one line that names the file,
            the key and the valid values.
    """
    values = read_sections(path)
    keys = [_set(values, override) for override in overrides]
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        wrong = [".".join(map(str, key)) for key in invalid_keys(error, values)]
        all_set = all(any(_within(name, key) or _within(key, name) for key in keys) for name in wrong)
        raise ParamsError(f"{'--set' if all_set else path.name}: {_with_suggestions(error, values)}") from None


def _within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def read_sections(path: Path, load: Callable[[str], Any] = yaml_values) -> dict[str, Any]:
    """The sections of a params file, not validated; `load` parses the YAML.

    Raises:
        ParamsError: the file is missing, is not valid YAML, or has no sections.
    """
    try:
        text = read_yaml(path)
    except FileNotFoundError:
        raise ParamsError(
            f"{path} is missing: run this in the project's folder; --params names another file"
        ) from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path.name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    try:
        values = yaml_values(text)
        values = values if load is yaml_values else load(text)
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ParamsError(f"{path.name}{line}: not valid YAML: {_first_line(error)}") from None
    if not isinstance(values, dict):
        what = "holds a list" if isinstance(values, list) else f"holds the value {values!r:.80}"
        what = "is empty" if values is None else what
        raise ParamsError(f"{path.name} {what}: it needs the sections {', '.join(Params.model_fields)}")
    return values


def _first_line(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).strip().splitlines()[0]


def _set(values: dict[str, Any], override: str) -> str:
    """Applies an override to `values`; returns its key."""
    key, equals, text = override.partition("=")
    shown = override if len(override) <= 80 else f"{override[:80]}…"
    path = key.strip().split(".")
    if not equals or not all(path) or len(path) > _DEEPEST:
        raise ParamsError(f"--set {shown!r}: write it as section.key=value")
    try:
        value = yaml_values(text) if text.strip() else None
    except YAMLError as error:
        raise ParamsError(f"--set {shown!r}: the value is not valid YAML: {_first_line(error)}") from None
    section: Any = values
    for part in path[:-1]:
        section = section.setdefault(part, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise ParamsError(f"--set {shown!r}: {'.'.join(path[:-1])} is a value, not a section")
    section[path[-1]] = value
    return ".".join(path)


def _with_suggestions(error: ValidationError, values: dict[str, Any]) -> str:
    parts = [explain(error, values)]
    for item in error.errors():
        if item["type"] in ("extra_forbidden", "dict_type"):
            parts += _suggestions(tuple(map(str, item["loc"])), values)
    if any(item["type"] == "missing" for item in error.errors()):
        parts.append("docs/params.md lists every key with its shipped value")
    return "; ".join(parts)


def _suggestions(path: tuple[str, ...], values: dict[str, Any]) -> Iterator[str]:
    """What to write instead of a key that its section does not have."""
    *parents, key = path
    kind: Any = Params
    section: Any = values
    for parent in parents:
        kind, section = kind.model_fields[parent].annotation, section[parent]
    if close := difflib.get_close_matches(key, kind.model_fields, n=1):
        yield f"did you mean {close[0]!r} instead of {key!r}?"
    elif issubclass(kind, Choice | Choices):  # an option that stands outside its component's section
        name, use = section.get("name"), section.get("use")
        if key != name and not (isinstance(use, list) and key in use):
            component = name if isinstance(name, str) else "NAME"
            yield f"did you mean {'.'.join([*parents, component, key])}?"
    else:
        found = [name for name in _find_key(key, values) if name != ".".join(path)]
        yield f"there is {', '.join(found)}" if found else f"remove {key!r}"


def _find_key(key: str, values: Any, where: str = "") -> Iterator[str]:
    """The dotted names of all keys of the file with this name."""
    for name, value in values.items() if isinstance(values, dict) else ():
        if name == key:
            yield f"{where}{name}"
        yield from _find_key(key, value, f"{where}{name}.")
