"""The effective params of a result, and the differences between two sets of params."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def effective(section: Mapping[str, Any]) -> dict[str, Any]:
    """The params of a section, or of all of params.yaml, without the options of components that are not chosen.

    A section with `name` or `use` chooses components.
    """
    if "name" in section or "use" in section:
        chosen = _chosen(section)
        return {key: value for key, value in section.items() if key in chosen or not isinstance(value, Mapping)}
    return {key: effective(value) if isinstance(value, Mapping) else value for key, value in section.items()}


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The effective params that differ, by dotted name, as (old, new) values; None for an absent one.

    If another component is chosen, only its name is listed, not its options.
    """
    return _changed(effective(old), effective(new), "")


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if all(isinstance(value, Mapping) or value is None for value in (before, after)):
            if (key in _chosen(old)) == (key in _chosen(new)):
                found |= _changed(before or {}, after or {}, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = (before, after)
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The result of `changed` for messages, such as `model.dropout 0.0 → 0.2`."""
    return [f"{name} {shown(before)} → {shown(after)}" for name, (before, after) in changed(old, new).items()]


def contradictions(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The effective params that both sides have with different values, by dotted name: both values as text.

    Params of only one side are ignored: a record lacks those that had no effect, and includes the defaults of
    omitted options.
    """
    old, new = flatten(effective(recorded)), flatten(effective(given))
    return {name: (shown(old[name]), shown(new[name])) for name in old if name in new and old[name] != new[name]}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    rows: dict[str, Any] = {}
    for key, value in values.items():
        rows |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return rows


def _chosen(section: Mapping[str, Any]) -> Sequence[Any]:
    """The names of the components that a section chooses."""
    use = section.get("use")
    return use if isinstance(use, list | tuple) else [section.get("name")]


def shown(value: Any) -> str:
    """A value in one line, for a message: plain text as it is, anything else as JSON; "none" for None."""
    if isinstance(value, str) and value and value.isprintable():
        return value
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=repr)
