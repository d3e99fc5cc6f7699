"""The contract of an exporter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.authoring.testing.toy import instance_of, keeps_no_state
from pipeline.plugin.components import Exporter, ExportSource


class Refused(AssertionError):  # noqa: N818 - an answer, not an error
    """The exporter refuses the model: the format does not support it, or it does not know the architecture."""


@keeps_no_state
def check_exporter(component: type[Exporter] | Exporter, source: ExportSource, folder: Path) -> None:
    """Checks an exporter: `verify` accepts what `export` wrote, and rejects the same files for another model.

    Args:
        component: The exporter.
        source: A trained model; `pipeline.export.stage.export_source` makes one from a checkpoint.
        folder: An empty folder.

    Raises:
        Refused: `export` raised ValueError, as it must for a model that the format does not support.
    """
    exporter = instance_of(component)
    try:
        exporter.export(source, folder)
    except ValueError as refusal:
        if not str(refusal):
            raise AssertionError("an exporter that refuses a model must give the reason") from refusal
        raise Refused(f"it refuses the model {source.config['name']}: {refusal}") from refusal
    assert any(folder.iterdir()), "export must write files"
    proof = exporter.verify(source, folder)
    assert proof.get("reader"), "verify must return the name of the `reader`"
    json.dumps(proof, allow_nan=False)
    changed = {name: tensor + 0.5 * torch.randn_like(tensor) for name, tensor in source.weights.items()}
    other = replace(source, weights=changed, logits=lambda tokens: source.logits(tokens) + tokens.shape[1])
    try:
        exporter.verify(other, folder)
    except ValueError:
        return
    raise AssertionError("verify accepted an export that does not reproduce the checkpoint")
