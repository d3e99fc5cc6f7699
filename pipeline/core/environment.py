"""environment.yaml: what is installed that decides results, written down so that DVC sees an upgrade."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from pipeline.core.files import write_atomically

_HEADER = """\
# What is installed that decides results; DVC compares it. Written by `python -m pipeline lock`.
"""


def versions() -> dict[str, str]:
    """Python's major.minor and the versions of the packages that decide a trained model's bits."""
    python = ".".join(platform.python_version_tuple()[:2])
    packages = {
        name: metadata.version(name).partition("+")[0] for name in ("torch", "numpy", "tokenizers", "tiktoken")
    }
    return {"python": python, **packages}


def plugin_packages(group: str) -> dict[str, str]:
    """Installed packages that bring plugins, with their versions."""
    points = metadata.entry_points(group=group)
    return {point.dist.name: point.dist.version for point in points if point.dist}


def environment_yaml(group: str) -> str:
    """What environment.yaml should hold now."""
    plugins = plugin_packages(group)
    lines = [f'{name}: "{version}"' for name, version in versions().items()]
    lines += ["plugins:" if plugins else "plugins: {}"]
    lines += [f'  {name}: "{version}"' for name, version in sorted(plugins.items())]
    return _HEADER + "\n".join(lines) + "\n"


def write_environment(path: Path, group: str) -> bool:
    """Writes environment.yaml if anything changed; returns whether it did."""
    content = environment_yaml(group)
    if path.is_file() and path.read_text(encoding="utf-8") == content:
        return False
    write_atomically(path, content)
    return True
