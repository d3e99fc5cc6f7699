"""The optimizer of a finished run, rebuilt from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.core.errors import CheckpointError
from pipeline.core.files import verify_manifest
from pipeline.core.paths import RECORD
from pipeline.model.checkpoint import load_tensors, weights_file
from pipeline.model.plain_optimizers import use_plain_optimizers
from pipeline.model.run_record import read_record
from pipeline.plugin.calls import calling, label, supported_arguments
from pipeline.plugin.registry import Registry


def load_trained_optimizer(folder: Path, model: torch.nn.Module, registry: Registry) -> torch.optim.Optimizer:
    """Builds the optimizer that `run.json` names over the parameters of `model`, and loads its saved state.

    Args:
        folder: The checkpoint.
        model: A model of the checkpoint's architecture; the optimizer updates its parameters.
        registry: Registered optimizers.

    Raises:
        DataError: a file is missing or damaged.
        CheckpointError: the saved state does not fit `model`.
        ParamsError: no plugin provides the optimizer.
        PluginError: the optimizer cannot be built.
    """
    verify_manifest(folder, "run `dvc repro`")
    use_plain_optimizers()
    chosen = read_record(folder).params["train"]["optimizer"]
    name = chosen["name"]
    component = registry.build("optimizers", name, {name: chosen[name]}, f"{folder / RECORD}: train.optimizer")
    saved = load_tensors(weights_file(folder, "last"))
    with calling(component):
        more = supported_arguments(component, "build", total_steps=saved["step"])
        optimizer: torch.optim.Optimizer = component.build(list(model.named_parameters()), **more)
    try:
        optimizer.load_state_dict(saved["optimizer_state_dict"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: the state of {label(component)} does not fit the model: {error}"
        ) from None
    return optimizer
