"""What code and which versions decide a result, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.core.environment import versions
from pipeline.core.files import sha256
from pipeline.core.source import code_digest, import_closure, plugin_closure, top_level_imports


def code_identity(
    module: str, sources: Iterable[Path], plugins: Path, packages: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """The code of a stage and of its plugins (by syntax tree, so that comments do not count), and versions.

    Args:
        module: The stage's module; what it imports counts, and the templates beside it.
        sources: The files of the plugins that it uses; what they import of the project and of this package counts.
        plugins: The project's folder of plugins.
        packages: The installed packages that bring such plugins, with their versions.
    """
    root = Path(__file__).resolve().parents[2]
    files = {file for source in sources for file in plugin_closure(source, plugins.parent)}
    code = {root / path for path in import_closure(module, root, files)}
    templates = {each for path in code for each in path.parent.iterdir() if each.suffix in (".j2", ".css")}
    return {
        "code": _digests(code | templates, root),
        "plugins": _digests(files, plugins),
        "versions": {**versions(), **packages, **_imported(files)},
    }


def _digests(files: Iterable[Path], root: Path) -> dict[str, str]:
    """Each file's digest by its path, as messages name it."""
    return {
        _shown(path, root): code_digest(path) if path.suffix == ".py" else sha256(path) for path in sorted(files)
    }


def _shown(path: Path, root: Path) -> str:
    # Of an installed package, without the folder that it is installed in.
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else "/".join(path.parts[-2:])


def _imported(files: Iterable[Path]) -> dict[str, str]:
    """The versions of the packages that these files import."""
    names = {name for file in files for name in top_level_imports(file)} - {"torch", "numpy", "pipeline"}
    owners = metadata.packages_distributions() if names else {}
    return {owner: metadata.version(owner) for name in sorted(names) for owner in owners.get(name, [])}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """A short hash of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def output_fingerprint(
    module: str,
    params: Mapping[str, Any],
    inputs: Iterable[Path],
    origins: tuple[Iterable[Path], Mapping[str, str]],
    plugins: Path,
) -> str:
    """The fingerprint of what decides the output of a stage.

    Args:
        module: The stage's module.
        params: The params that it uses, with the options of the components that they choose.
        inputs: Files whose digests stand for all that it reads; one that is missing is left out.
        origins: The files of those components, and the installed packages that bring some, with their versions.
        plugins: The project's folder of plugins.
    """
    sources, packages = origins
    read = {path.parent.name: sha256(path) for path in inputs if path.is_file()}
    return fingerprint({"params": params, "inputs": read, **code_identity(module, sources, plugins, packages)})
