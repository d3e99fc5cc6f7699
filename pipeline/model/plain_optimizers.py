"""Optimizers of torch.optim without torch's compiler, for runs that compile nothing."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch


def use_plain_optimizers() -> None:
    """Lets optimizers run without the import of `torch._dynamo`, which takes as long as the import of torch.

    torch wraps `step` and some other methods so that compiled code leaves them alone, and each wrapper imports the
    compiler. While nothing else has imported it, nothing is compiled, and the wrapped method itself is called; from
    then on, the wrapper. Wrappers of other versions of torch that are not recognised are left as they are.
    """
    for cls in (torch.optim.Optimizer, *_classes()):
        for name, wrapper in list(vars(cls).items()):
            if kind := _kind(wrapper):
                setattr(cls, name, kind(wrapper))


def _classes() -> list[type]:
    values = vars(torch.optim).values()
    return [each for each in values if isinstance(each, type) and issubclass(each, torch.optim.Optimizer)]


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
