"""What decides a run's result, as one hash: a state is gone on from only by the very same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.environment import plugin_packages, versions
from pipeline.core.files import MANIFEST, sha256
from pipeline.core.source import import_closure
from pipeline.data.tokens import TokenFolder
from pipeline.plugin.registry import ENTRY_POINTS
from pipeline.train.store import FORMAT


def identity(params: dict[str, Any], splits: TokenFolder, plugins: Path, kinds: list[str]) -> dict[str, Any]:
    """Everything that decides the result: params, data, code, plugins, versions, the state's format."""
    code = Path(__file__).resolve().parents[2]
    sources = {path.as_posix(): sha256(code / path) for path in import_closure("pipeline.train.stage", code)}
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


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, as a person would name it: values with both sides, files by name."""
    found = [f"{name} {before} → {after}" for name, before, after in _different(old, new, "params", "versions")]
    if old.get("data") != new.get("data"):
        found.append("the data")
    if old.get("weights") != new.get("weights"):
        found.append("the weights to begin with")
    for kind in ("code", "plugins"):
        found += [f"{kind} {name}" for name, _, _ in _different(old, new, kind)]
    if old.get("format") != new.get("format"):
        found.append("the form of saved states")
    return found


def _different(old: Mapping[str, Any], new: Mapping[str, Any], *parts: str) -> list[tuple[str, Any, Any]]:
    """The values of these parts that differ, each with its dotted name; "none" where there is none."""
    before, after = (
        {
            name: value
            for part in parts
            for name, value in _flat(side.get(part))
            if not name.startswith("components.")
        }
        for side in (old, new)
    )
    names = [*after, *(name for name in before if name not in after)]
    pairs = [(name, before.get(name, "none"), after.get(name, "none")) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(values, dict):
        return [(prefix, values)]
    return [pair for name, each in values.items() for pair in _flat(each, f"{prefix}.{name}" if prefix else name)]
