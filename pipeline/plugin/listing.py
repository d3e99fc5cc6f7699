"""The list of components that `pipeline plugins` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import PluginError
from pipeline.plugin.components import KINDS
from pipeline.plugin.registry import Entry, Registry


def lines(plugins: Path, kind: str | None = None) -> Iterator[str]:
    """Every component of `kind` (or of all kinds): its name, options with defaults, description and source."""
    if kind is not None and kind not in KINDS:
        raise PluginError(f"there is no kind {kind!r} (there are: {', '.join(KINDS)})")
    registry = Registry.load(plugins, [kind] if kind else tuple(KINDS))
    for plural in [kind] if kind else KINDS:
        yield f"{plural} (plugins/{plural}/)"
        for entry in registry.entries(plural):
            yield from _entry(entry)
        yield ""
    yield "Defaults hold where params.yaml says nothing; the shipped params.yaml gives every option a value."


def _entry(entry: Entry) -> Iterator[str]:
    yield f"  {entry.component.name}  ·  {entry.source}"
    description = " ".join((entry.component.__doc__ or "").split("\n\n")[0].split())
    yield textwrap.fill(description, 100, initial_indent="      ", subsequent_indent="      ")
    options = [
        f"{name}={field.get_default(call_default_factory=True)!r}"
        for name, field in entry.component.model_fields.items()
    ]
    if options:
        yield textwrap.fill(
            f"options: {', '.join(options)}", 100, initial_indent="      ", subsequent_indent="        "
        )
