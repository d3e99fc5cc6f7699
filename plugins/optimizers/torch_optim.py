"""Other optimizers of torch.optim."""

import inspect
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator

from pipeline.plugin import Optimizer, hookimpl

# LBFGS needs a closure, SparseAdam sparse gradients, and Muon accepts only matrices.
_LEFT_OUT = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
_CLASSES = {
    name: value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and name not in _LEFT_OUT
}


class Torch(Optimizer):
    """Any class of torch.optim with its options, with all parameters in one group."""

    name: ClassVar[str] = "torch"

    class_name: str = "NAdam"
    """The name of the class, such as NAdam, RAdam, Adamax or RMSprop."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    options: dict[str, bool | int | float | list[float]] = {}
    """Other options of the class by name, such as {weight_decay: 0.1}; betas as a list."""

    @model_validator(mode="after")
    def _fits(self) -> "Torch":
        if self.class_name not in _CLASSES:
            raise ValueError(
                f"torch.optim has no usable class {self.class_name!r} (there are: {', '.join(_CLASSES)})"
            )
        known = set(inspect.signature(_CLASSES[self.class_name]).parameters) - {"params", "lr"}
        unknown = sorted(set(self.options) - known)
        if unknown:
            raise ValueError(
                f"{self.class_name} has no option {unknown[0]!r} (there are: {', '.join(sorted(known))})"
            )
        try:
            self._build([torch.nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.class_name} refuses these options: {error}") from None
        return self

    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        return self._build([parameter for _, parameter in named_parameters])

    def _build(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.options.items()
        }
        return _CLASSES[self.class_name](parameters, lr=self.lr, **options)


@hookimpl
def register_optimizers() -> list[type[Optimizer]]:
    return [Torch]
