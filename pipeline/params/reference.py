"""docs/params.md: every key of params.yaml with its type, its shipped value and its meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.params.presets import default_values
from pipeline.params.schema import COMPONENT_SECTIONS, schema
from pipeline.plugin.options import type_in_words

Json = Mapping[str, Any]

_HEADER = """\
# Params

Every key of `params.yaml`, with its value in the shipped file. `pipeline schema` writes this page and
`params.schema.json` from the code that validates the file, including the components of your plugins.
"""


def reference(plugins: Path) -> str:
    """The page as Markdown."""
    whole, values = schema(plugins), default_values()
    lines = [_HEADER]
    for name, field in whole["properties"].items():
        part = _choice if name in COMPONENT_SECTIONS else _section
        lines += [f"## {name}\n", *part(name, field, values[name], whole["$defs"])]
    return "\n".join(lines)


def _section(path: str, section: Json, values: Json, definitions: Json) -> Iterator[str]:
    """A table of a section's plain keys, then its subsections and its choices of components."""
    fields: Json = _resolved(section, definitions)["properties"]
    sections = {name for name, field in fields.items() if _resolved(field, definitions).get("type") == "object"}
    plain = {name: field for name, field in fields.items() if name not in sections}
    if plain:
        yield from _table(path, plain, values, definitions)
    for name, field in fields.items():
        dotted = f"{path}.{name}"
        if name in sections:
            part = _choice if dotted in COMPONENT_SECTIONS else _section
            yield f"### {dotted}\n"
            yield from part(dotted, field, values.get(name, {}), definitions)


def _choice(path: str, choice: Json, values: Json, definitions: Json) -> Iterator[str]:
    """The components to choose from, and the options of each."""
    if choice.get("description"):
        yield f"{choice['description']}\n"
    key = "name" if "name" in choice["properties"] else "use"
    common = [name for name in choice["required"] if name != key]
    components = {name: each for name, each in choice["properties"].items() if name != key and name not in common}
    what = f"`{path}.name` is one of" if key == "name" else f"`{path}.use` lists, in order, any of"
    yield f"{what} {', '.join(f'`{name}`' for name in components)} (shipped: `{_shown(values.get(key))}`).\n"
    if common:
        yield from _table(path, {name: choice["properties"][name] for name in common}, values, definitions)
    for name, each in components.items():
        yield f"#### {path}.{name}\n"
        yield f"{' '.join(each.get('description', '').split())}\n"
        if each.get("properties"):
            yield from _table(f"{path}.{name}", each["properties"], values.get(name, {}), definitions)


def _table(path: str, fields: Json, values: Json, definitions: Json) -> Iterator[str]:
    yield "| key | takes | shipped | |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        shipped = _shown(values[name] if name in values else field.get("default"))
        takes = type_in_words(field, definitions)
        description = " ".join(field.get("description", "").split())
        cells = [text.replace("|", "\\|") for text in (f"`{path}.{name}`", takes, f"`{shipped}`", description)]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _resolved(field: Json, definitions: Json) -> Json:
    resolved: Json = definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field
    return resolved
