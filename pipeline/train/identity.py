"""What decides a run's result, and its fingerprint: a saved state is resumed only by a run with the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.environment import versions
from pipeline.core.record import changed, differences
from pipeline.core.source import code_digest, import_closure, relative_closure, top_level_imports
from pipeline.train.components import Components
from pipeline.train.data import TrainingData
from pipeline.train.store import FORMAT

if TYPE_CHECKING:
    from pipeline.params.params import Params


def identity(
    params: Params, components: Components, data: TrainingData, weights: str, model: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides the result of training.

    That is: the params that are used, the data, the pretrained weights, the code (its syntax tree, so that comments
    do not count) that training imports and that of the chosen plugins, versions, and the format of saved states.
    What is not chosen is not in it, nor are `runtime` and callbacks that only record.

    Args:
        params: All params.
        components: The components that they choose.
        data: The splits.
        weights: The digest of the pretrained weights; empty for none.
        model: The effective section `model`.
    """
    root = Path(__file__).resolve().parents[2]
    files = {file for source in components.sources for file in relative_closure(source)}
    return {
        "params": {"model": dict(model), "train": components.effective(params.train)},
        "data": data.digest,
        "weights": weights,
        "code": _digests(import_closure("pipeline.train.stage", root), root),
        "plugins": _digests(files, components.plugins),
        "versions": {**versions(), **components.packages, **_imported(files)},
        "format": FORMAT,
    }


def _digests(files: Iterable[Path], root: Path) -> dict[str, str]:
    """Each file's digest by its path, as messages name it."""
    return {_shown(root / path, root): code_digest(root / path) for path in sorted(files)}


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


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, as a person would name it: values with both sides, files by name."""
    found = [each for part in ("params", "versions") for each in differences(_part(old, part), _part(new, part))]
    whole = {"data": "the data", "weights": "the pretrained weights", "format": "the format of saved states"}
    found += [what for part, what in whole.items() if old.get(part) != new.get(part)]
    return found + [
        f"{part} {name}" for part in ("code", "plugins") for name in changed(_part(old, part), new[part])
    ]


def _part(identity: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = identity.get(name)
    return part if isinstance(part, Mapping) else {}
