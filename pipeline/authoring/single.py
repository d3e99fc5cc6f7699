"""Loads a single plugin file from any folder."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.core.errors import PluginError
from pipeline.plugin.components import KINDS, Kind
from pipeline.plugin.registry import Entry, Registry


def load_file(path: Path, plugins: Path) -> list[tuple[Kind, Entry]]:
    """Loads the components that a plugin file or a package's folder registers.

    A file in the folder of a kind below `plugins` is loaded with the others of its kind, as the stages do. A file
    outside `plugins` is loaded alone, and may register components of any kind.

    Raises:
        PluginError: it is not a plugin, cannot be imported, breaks its contract, uses an existing name, or is in a
            folder of `plugins` from which the stages load nothing.
    """
    file = Path(os.path.abspath(path / "__init__.py" if path.is_dir() else path))
    if file.suffix != ".py" or not file.is_file():
        raise PluginError(f"{path} is not a plugin: give a .py file, or a folder with an __init__.py")
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
        raise PluginError(f"{source} registers no component (files whose names start with _ are not plugins)")
    if not inside and file.is_relative_to(plugins):
        kind, entry = found[0]
        raise PluginError(
            f"{source}: no run finds the {kind.singular} {entry.component.name!r} here: move it to "
            f"plugins/{kind.plural}/"
        )
    return found
