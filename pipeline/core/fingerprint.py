"""Fingerprints: hashes of the params, data, code and versions that decide a result."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.core.environment import versions
from pipeline.core.files import sha256
from pipeline.core.source import code_digest, import_closure, package_closure, plugin_closure, top_level_imports


def code_identity(
    module: str, sources: Iterable[Path], plugins: Path, packages: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Digests of the code of a stage and its plugins (of syntax trees, without comments), and versions.

    Args:
        module: The stage's module. Its imports within the package and the templates beside them are included.
        sources: The files of the chosen plugins. Their imports from the project and this package are included.
        plugins: The project's plugins folder.
        packages: The installed packages that provide chosen plugins, with versions.
    """
    root = Path(__file__).resolve().parents[2]
    files = set[Path]()
    for source in sources:
        own = source.is_relative_to(plugins)
        files |= plugin_closure(source, plugins.parent) if own else package_closure(source)
    code = {root / path for path in import_closure(module, root, files)}
    templates = {each for path in code for each in path.parent.iterdir() if each.suffix in (".j2", ".css")}
    return {
        "code": _digests(code | templates, root),
        "plugins": _digests(files, plugins),
        "versions": {**versions(), **packages, **_imported(files)},
    }


def _digests(files: Iterable[Path], root: Path) -> dict[str, str]:
    """The digest of each file, by its path for messages."""
    return {
        _shown(path, root): code_digest(path) if path.suffix == ".py" else sha256(path) for path in sorted(files)
    }


def _shown(path: Path, root: Path) -> str:
    # For an installed package, without its site-packages folder.
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else "/".join(path.parts[-2:])


def _imported(files: Iterable[Path]) -> dict[str, str]:
    """The versions of the installed packages that these files import."""
    names = {name for file in files for name in top_level_imports(file)} - {"torch", "numpy", "pipeline"}
    found = {name: _package_named(name) for name in sorted(names - sys.stdlib_module_names)}
    # Reads the list of files of every installed package.
    owners = metadata.packages_distributions() if None in found.values() else {}
    packages = [owner for name, named in found.items() for owner in ([named] if named else owners.get(name, []))]
    return {package: metadata.version(package) for package in packages}


def _package_named(module: str) -> str | None:
    """The installed package with the name of a module, if it has that module."""
    with suppress(metadata.PackageNotFoundError):
        package = metadata.distribution(module)
        if f"\n{module}/__init__.py," in f"\n{package.read_text('RECORD')}":
            return package.name
    return None


def fingerprint(identity: Mapping[str, Any]) -> str:
    """A short hash of an identity (16 hexadecimal digits)."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def output_fingerprint(
    module: str,
    params: Mapping[str, Any],
    inputs: Iterable[Path],
    origins: tuple[Iterable[Path], Mapping[str, str]],
    plugins: Path,
) -> str:
    """The fingerprint of a stage's output: of everything that decides it.

    Args:
        module: The stage's module.
        params: The params of the stage, with the options of the chosen components.
        inputs: Files whose digests represent all inputs; missing ones are ignored.
        origins: The files of the chosen components, and the installed packages among them with their versions.
        plugins: The project's plugins folder.
    """
    sources, packages = origins
    read = {path.parent.name: sha256(path) for path in inputs if path.is_file()}
    return fingerprint({"params": params, "inputs": read, **code_identity(module, sources, plugins, packages)})
