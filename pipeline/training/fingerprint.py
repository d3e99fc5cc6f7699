"""What decides a run's result, as one hash: a state is gone on from only by the very same run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.data.tokens import TokenFolder
from pipeline.environment import plugin_packages, versions
from pipeline.files import MANIFEST, sha256
from pipeline.plugin.registry import ENTRY_POINTS
from pipeline.source import import_closure
from pipeline.training.state import FORMAT


def identity(params: dict[str, Any], splits: TokenFolder, plugins: Path, kinds: list[str]) -> dict[str, Any]:
    """Everything that decides the result: params, data, code, plugins, versions, the state's format."""
    code = Path(__file__).resolve().parents[2]
    sources = {path.as_posix(): sha256(code / path) for path in import_closure("pipeline.stages.train", code)}
    plugin_sources = {
        path.relative_to(plugins).as_posix(): sha256(path)
        for kind in kinds
        for path in (plugins / kind).rglob("*.py")
    }
    return {
        "params": params,
        "data": sha256(splits.folder / MANIFEST),
        "code": dict(sorted(sources.items())),
        "plugins": dict(sorted(plugin_sources.items())),
        "versions": versions() | plugin_packages(ENTRY_POINTS),
        "format": FORMAT,
    }


def fingerprint(identity: dict[str, Any]) -> str:
    """A short hash of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
