"""What decides the result of training: a saved state is resumed only by a run with the same fingerprint."""

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
    params: Params, components: Components, data: TrainingData, weights: str, teacher: str = ""
) -> dict[str, Any]:
    """Everything that decides the result of training: the params that are used, the data, the pretrained weights,
    code and versions, and the format of training checkpoints.

    What is not chosen is not in it, nor are `runtime` and callbacks that only record.

    Args:
        params: All params.
        components: The components that they choose.
        data: The splits.
        weights: The digest of the pretrained weights; empty for none.
        teacher: The digest of the model that the loss learns from; empty for none.
    """
    return {
        "params": {
            "model": components.effective_model(params.model),
            "train": components.effective(params.train),
        },
        "data": data.digest,
        "weights": weights,
        "teacher": teacher,
        **code_identity("pipeline.train.stage", components.sources, components.plugins, components.packages),
        "format": FORMAT,
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, as a person would name it: values with both sides, files by name."""
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
    # Files of one side only follow from what else differs, such as the files of another model.
    return found + edited or list(files)


def _part(identity: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = identity.get(name)
    return part if isinstance(part, Mapping) else {}
