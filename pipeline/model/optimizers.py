"""Optimizers: those of torch.optim without torch's compiler, and that of a finished run, from its checkpoint."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import CheckpointError
from pipeline.core.files import verify_manifest
from pipeline.core.paths import RECORD
from pipeline.model.checkpoint import load_tensors, weights_file
from pipeline.model.run_record import read_record
from pipeline.plugin.calls import calling, label, supported_arguments
from pipeline.plugin.registry import Registry


def use_plain_optimizers() -> None:
    """Lets optimizers run without the import of `torch._dynamo`, which takes as long as the import of torch.

    torch wraps `step` and some other methods so that compiled code leaves them alone, and each wrapper imports the
    compiler. While nothing else has imported it, nothing is compiled, and the wrapped method itself is called; from
    then on, the wrapper. Wrappers of other versions of torch that are not recognised are left as they are.
    """
    values = vars(torch.optim).values()
    for cls in (each for each in values if isinstance(each, type) and issubclass(each, torch.optim.Optimizer)):
        for name, wrapper in list(vars(cls).items()):
            if kind := _kind(wrapper):
                setattr(cls, name, kind(wrapper))


def _kind(wrapper: Any) -> Callable[[Any], Any] | None:
    """What replaces a method that imports the compiler; None for any other attribute."""
    if not hasattr(wrapper, "__wrapped__") or not hasattr(wrapper, "__code__"):
        return None
    if wrapper.__code__.co_filename == getattr(sys.modules.get("torch._compile"), "__file__", ""):
        return _plain_method
    return _plain_step if wrapper.__name__ == "step" and wrapper.__code__.co_name == "_use_grad" else None


def _plain_method(wrapper: Any) -> Any:
    method = wrapper.__wrapped__

    @functools.wraps(method)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return (wrapper if "torch._dynamo" in sys.modules else method)(*args, **kwargs)

    return plain


def _plain_step(wrapper: Any) -> Any:
    step = wrapper.__wrapped__

    @functools.wraps(step)
    def plain(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            return wrapper(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):  # as the wrapper does
            return step(self, *args, **kwargs)

    return plain


def load_trained_optimizer(folder: Path, model: torch.nn.Module, registry: Registry) -> torch.optim.Optimizer:
    """As `pipeline.model.load_optimizer`, of the optimizers in `registry`."""
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
