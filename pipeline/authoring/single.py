"""One plugin file by itself, wherever it lies."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.core.errors import PluginError
from pipeline.plugin.components import KINDS, Kind
from pipeline.plugin.registry import Entry, Registry


def load_file(path: Path, plugins: Path) -> list[tuple[Kind, Entry]]:
    """The components that a plugin file, or a package's folder, registers.

    Below `plugins` it is loaded as a stage loads it, together with its neighbours; anywhere else alone, and
    then it may register every kind.

    Raises:
        PluginError: it is no plugin, cannot be imported or breaks its contract, or a name is taken.
    """
    file = Path(os.path.abspath(path / "__init__.py" if path.is_dir() else path))
    if file.suffix != ".py" or not file.is_file():
        raise PluginError(f"{path} is no plugin: name a .py file, or a folder that holds an __init__.py")
    home = file.parent.parent if file.name == "__init__.py" else file.parent
    inside = home.parent == plugins and home.name in KINDS
    kinds = {home.name: KINDS[home.name]} if inside else KINDS
    if inside:
        source = file.relative_to(plugins.parent).as_posix()
        registry = Registry.load(plugins, kinds)
    else:
        source = str(path)
        registry = Registry.of_file(file, source)
    found = [
        (kind, entry) for plural, kind in kinds.items() for entry in registry.entries(plural)
        if entry.source == source
    ]  # fmt: skip
    names = {(kind.plural, entry.component.name) for kind, entry in found}
    for broken in registry.broken:
        if broken.source == source or names & broken.names:
            raise PluginError(broken.message)
    if not found:
        raise PluginError(f"{source} registers no component (a file whose name starts with _ is no plugin)")
    return found
