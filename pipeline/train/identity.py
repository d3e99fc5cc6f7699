"""A run's identity: everything that decides its result. Only a run with the same identity resumes a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.core.fingerprint import code_identity
from pipeline.core.params_diff import changed, differences
from pipeline.train.checkpoint_store import FORMAT
from pipeline.train.components import Components
from pipeline.train.data import TrainingData

if TYPE_CHECKING:
    from pipeline.params.params import Params


def identity(
    params: Params, components: Components, data: TrainingData, weights: str, teacher: str
) -> dict[str, Any]:
    """Everything that decides the result of training: the effective params, the data, code, versions, the format of
    training checkpoints, and the digests of the pretrained weights and the loss's teacher (empty without them).

    It leaves out components that are not chosen, callbacks with `records_only`, and the section `runtime`.
    """
    return {
        "params": components.effective(params),
        "data": data.digest,
        "weights": weights,
        "teacher": teacher,
        **code_identity("pipeline.train.stage", components.sources, components.plugins, components.packages),
        "format": FORMAT,
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences between two identities, for a message: values as "old → new", files by name."""
    found = [each for part in ("params", "versions") for each in differences(_part(old, part), _part(new, part))]
    whole = {
        "data": "the data",
        "weights": "the pretrained weights",
        "teacher": "the loss's teacher",
        "format": "the format of training checkpoints",
    }
    found += [what for part, what in whole.items() if old.get(part) != new.get(part)]
    files = {
        f"{part} {name}": sides
        for part in ("code", "plugins")
        for name, sides in changed(_part(old, part), _part(new, part)).items()
    }
    edited = [name for name, sides in files.items() if None not in sides]
    # A file in only one identity follows from another difference, such as another model.
    return found + edited or list(files)


def _part(identity: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = identity.get(name)
    return part if isinstance(part, Mapping) else {}
