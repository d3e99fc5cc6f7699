"""The output of `pipeline plugins`: the list of components, and the details of one."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.console import columns
from pipeline.core.errors import PipelineError, PluginError
from pipeline.core.values import as_yaml
from pipeline.plugin.components import KINDS, Kind
from pipeline.plugin.options import options_schema, plain_options, type_in_words, with_options
from pipeline.plugin.registry import Entry, Registry


def find_kind(word: str) -> Kind:
    """Finds a kind by its singular or plural name, with spaces, hyphens or underscores.

    Raises:
        PluginError: there is no such kind.
    """
    for kind in KINDS.values():
        if plain_word(word) in (kind.plural, plain_word(kind.singular)):
            return kind
    raise PluginError(f"there is no kind {word!r} (there are: {', '.join(KINDS)})")


def plain_word(word: str) -> str:
    """A word in lower case, with underscores for spaces and hyphens."""
    return re.sub(r"[\s_-]+", "_", word.strip().lower())


# ── the list ──────────────────────────────────────────────────────────────────────────────────────


def lines(plugins: Path, kind: str | None = None) -> Iterator[str]:
    """Yields the name, description, options with defaults and source of every component of `kind` (or of all
    kinds)."""
    kinds = [find_kind(kind).plural] if kind else list(KINDS)
    registry = Registry.load(plugins, kinds)
    for plural in kinds:
        yield f"{plural} (plugins/{plural}/)"
        for entry in registry.entries(plural):
            yield from _entry(entry)
        yield from (f"  not loaded: {broken.message}" for broken in registry.broken if plural in broken.kinds)
        yield ""
    yield "Defaults apply to options that params.yaml does not set; the shipped params.yaml sets every option."


def _entry(entry: Entry) -> Iterator[str]:
    yield f"  {entry.component.name}  ·  {entry.source}"
    description = " ".join((entry.component.__doc__ or "").split("\n\n")[0].split())
    yield _filled(description)
    try:
        options = [f"{name}={as_yaml(value)}" for name, value in _defaults(entry).items()]
    except PipelineError as error:
        yield f"      invalid default options: {error}"
        return
    if options:
        yield _filled(f"options: {', '.join(options)}", hang=2)


def _filled(text: str, hang: int = 0) -> str:
    """A paragraph in lines of at most 100 columns, or of the terminal's."""
    width, margin = min(columns(sys.stdout) or 100, 100), " " * 6
    return textwrap.fill(
        text, width, initial_indent=margin, subsequent_indent=margin + " " * hang, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _defaults(entry: Entry) -> dict[str, Any]:
    """The default options of the component, as in params.yaml."""
    return plain_options(with_options(entry.component, {}, entry.component.name))


# ── one component ─────────────────────────────────────────────────────────────────────────────────


def details(plugins: Path, name: str) -> Iterator[str]:
    """Yields the details of the components called `name`, of all kinds: source, key in params.yaml, docstring, and
    the type, bounds, default and description of each option.

    Raises:
        PluginError: there is no component of this name.
    """
    registry = Registry.load(plugins)
    found = [
        (kind, entry) for kind in KINDS.values() for entry in registry.entries(kind.plural)
        if entry.component.name == name
    ]  # fmt: skip
    if not found:
        raise PluginError(_unknown(registry, name))
    for number, (kind, entry) in enumerate(found):
        if number:
            yield ""
        yield from _component(kind, entry)


def _unknown(registry: Registry, name: str) -> str:
    names = {plural: registry.names(plural) for plural in KINDS}
    close = difflib.get_close_matches(name, [each for listed in names.values() for each in listed], n=1)
    suggestion = f"; did you mean {close[0]!r}?" if close else ""
    known = "; ".join(f"{plural}: {', '.join(listed) or 'none'}" for plural, listed in names.items())
    unloaded = "".join(f"; not loaded: {broken.message}" for broken in registry.broken)
    return f"there is no component named {name!r}{suggestion} (there are {known}){unloaded}"


def _component(kind: Kind, entry: Entry) -> Iterator[str]:
    schema, name, defaults = options_schema(entry.component), entry.component.name, _defaults(entry)
    section, _, key = kind.chosen_by.rpartition(".")
    yield f"{kind.singular} {name}  ·  {entry.source}"
    yield f"params.yaml: {section}.{key}: {name if key == 'name' else f'[{name}]'}"
    yield ""
    yield textwrap.indent(inspect.cleandoc(entry.component.__doc__ or ""), "  ")
    yield ""
    fields = entry.component.model_fields
    yield f"options, under {section}.{name}:" if fields else "It has no options."
    for option, field in fields.items():
        default = json.dumps(defaults[option], ensure_ascii=False)
        takes = type_in_words(schema["properties"][option], schema.get("$defs", {}))
        yield f"  {option}: {takes}; default {default}"
        if field.description:
            text = " ".join(field.description.split())
            yield _filled(text)
