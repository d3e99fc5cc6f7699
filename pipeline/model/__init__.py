"""Models: building blocks, checkpoints, token scoring, generation.

`load` and `load_optimizer` are the way to use a checkpoint from Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pipeline.model.checkpoint import Checkpoint


def load(
    folder: str | Path, weights: str = "best", device: str = "cpu", plugins: str | Path | None = None
) -> Checkpoint:
    """Loads a checkpoint: its `model` in eval mode, its `tokenizer`, and the `step` of its weights.

    Args:
        folder: The checkpoint, such as artifacts/checkpoint.
        weights: "best" or "last".
        device: The model's device, as `runtime.device`.
        plugins: The plugins folder that provides the architecture, unless an installed package does. None: that of
            the project in which the checkpoint is, or else of the current folder.

    Raises:
        CheckpointError: a file is missing or corrupt, or no plugin provides the architecture.
    """
    from pipeline.model.checkpoint import load_checkpoint
    from pipeline.model.device import choose_device
    from pipeline.plugin.registry import Registry

    registry = Registry.load(_plugins(folder, plugins), ["models"])
    return load_checkpoint(Path(folder), weights, choose_device(device), registry)


def load_optimizer(
    folder: str | Path, model: torch.nn.Module, plugins: str | Path | None = None
) -> torch.optim.Optimizer:
    """The optimizer that trained a checkpoint, with its saved state, over the parameters of `model`.

    Args:
        folder: The checkpoint, such as artifacts/checkpoint.
        model: Its model: `load(folder, weights="last").model`, whose step the optimizer's state belongs to.
        plugins: The plugins folder that provides the optimizer, unless an installed package does; see `load`.

    Raises:
        DataError: a file is missing or damaged.
        CheckpointError: the saved state does not fit `model`.
        ParamsError: no plugin provides the optimizer.
        PluginError: the optimizer cannot be built.
    """
    from pipeline.model.optimizers import load_trained_optimizer
    from pipeline.plugin.registry import Registry

    registry = Registry.load(_plugins(folder, plugins), ["optimizers"])
    return load_trained_optimizer(Path(folder), model, registry)


def _plugins(checkpoint: str | Path, given: str | Path | None) -> Path:
    if given is not None:
        return Path(given).absolute()
    projects = (each for each in Path(checkpoint).absolute().parents if (each / "params.yaml").is_file())
    return next(projects, Path.cwd()) / "plugins"
