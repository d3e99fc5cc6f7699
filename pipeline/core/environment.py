"""environment.yaml: the installed versions that decide results, recorded so that DVC notices an upgrade."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from pipeline.core.source import code_digest

_HEADER = """\
# What is installed that decides results; DVC compares it. Written by `python -m pipeline lock`.
"""


def versions() -> dict[str, str]:
    """Python's major.minor version, and the versions of the packages that decide results."""
    python = ".".join(platform.python_version_tuple()[:2])
    packages = {
        name: metadata.version(name).partition("+")[0] for name in ("torch", "numpy", "tokenizers", "tiktoken")
    }
    return {"python": python, **packages}


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed; what needs another one says so."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def version_and_code(version: str, files: Iterable[Path]) -> str:
    """The version of a package and a digest of the code in `files`, because other code may have the same version;
    without files, the version alone.

    Raises:
        PluginError: a file is not valid Python.
    """
    digests = sorted(map(code_digest, files))
    return f"{version} code {hashlib.sha256(''.join(digests).encode()).hexdigest()[:12]}" if digests else version


def environment_yaml(plugins: Mapping[str, Mapping[str, str]]) -> str:
    """The current content of environment.yaml; `plugins` describes the plugin packages, by kind and name."""
    lines = [f'{name}: "{version}"' for name, version in versions().items()]
    lines += ["plugins:", *(f"  {kind}: {json.dumps(packages)}" for kind, packages in plugins.items())]
    return _HEADER + "\n".join(lines) + "\n"


def environment_changes(path: Path, plugins: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The differences between environment.yaml at `path` and its current content, as "torch 2.1 → 2.2"."""
    if not path.is_file():
        return ["new file"]
    old, new = _values(path.read_text(encoding="utf-8", errors="replace")), _values(environment_yaml(plugins))
    return [
        f"{name} {old.get(name, 'none')} → {new.get(name, 'none')}"
        for name in new | old
        if old.get(name) != new.get(name)
    ]


def _values(text: str) -> dict[str, str]:
    """The value of each line, by key."""
    parts = [line.partition(":") for line in text.splitlines() if not line.startswith("#")]
    return {name.strip(): value.strip() for name, _, value in parts if value.strip()}
