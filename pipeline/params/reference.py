"""docs/params.md: every key of params.yaml, what it takes, its shipped value and its meaning, from the models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.files import write_atomically
from pipeline.params.presets import default_values
from pipeline.params.schema import PLACES, schema
from pipeline.plugin.options import type_in_words

_HEADER = """\
# Params

Every key of `params.yaml`, with the value of the shipped file. `pipeline schema` writes this page and
`params.schema.json` from the models that check the file, so a new component of yours appears here too.
"""


def write_reference(path: Path, plugins: Path) -> None:
    """Writes `reference` to a file."""
    write_atomically(path, reference(plugins))


def reference(plugins: Path) -> str:
    """The page, as Markdown."""
    whole, values = schema(plugins), default_values()
    lines = [_HEADER]
    for name, field in whole["properties"].items():
        lines += [f"## {name}\n", *_section(name, _resolved(field, whole), values[name], whole)]
    return "\n".join(lines)


def _section(
    path: str, model: Mapping[str, Any], values: Mapping[str, Any], whole: Mapping[str, Any]
) -> Iterator[str]:
    """A table of the section's own keys, then its subsections, then its choices of components."""
    fields = {name: _resolved(field, whole) for name, field in model["properties"].items()}
    plain = {name: field for name, field in fields.items() if field.get("type") != "object"}
    if plain:
        yield from _table(path, plain, values, whole)
    for name, field in fields.items():
        if name in plain:
            continue
        place = f"{path}.{name}"
        if tuple(place.split(".")) in PLACES:
            yield f"### {place}\n"
            yield from _choice(place, field, values.get(name, {}), whole)
        elif "properties" in field:
            yield f"### {place}\n"
            yield from _section(place, field, values.get(name, {}), whole)


def _choice(
    path: str, field: Mapping[str, Any], values: Mapping[str, Any], whole: Mapping[str, Any]
) -> Iterator[str]:
    """What there is to choose from, and each component's own options."""
    if field.get("description"):
        yield f"{field['description']}\n"
    key = "name" if "name" in field["properties"] else "use"
    components = {name: each for name, each in field["properties"].items() if name != key}
    what = f"`{path}.name` is one of" if key == "name" else f"`{path}.use` lists, in order, any of"
    yield f"{what} {', '.join(f'`{name}`' for name in components)} (shipped: `{_shown(values.get(key))}`).\n"
    for name, each in components.items():
        yield f"#### {path}.{name}\n"
        yield f"{' '.join(each.get('description', '').split())}\n"
        if each.get("properties"):
            yield from _table(f"{path}.{name}", each["properties"], values.get(name, {}), whole)


def _table(
    path: str, fields: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any], whole: Mapping[str, Any]
) -> Iterator[str]:
    yield "| key | takes | shipped | |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        shipped = _shown(values[name] if name in values else field.get("default"))
        takes = type_in_words(field, whole["$defs"])
        description = " ".join(field.get("description", "").split())
        cells = [text.replace("|", "\\|") for text in (f"`{path}.{name}`", takes, f"`{shipped}`", description)]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _resolved(field: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in field:
        definition: Mapping[str, Any] = whole["$defs"][field["$ref"].rpartition("/")[2]]
        return definition
    return field
