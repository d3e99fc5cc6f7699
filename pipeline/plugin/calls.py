"""Calls into plugins: any exception becomes a one-line PluginError that names the plugin, its file and the line."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pipeline.core.errors import (
    Interrupted,
    PipelineError,
    PluginError,
    StopRequested,
    describe_exception,
    out_of_memory,
)
from pipeline.plugin.components import KINDS, Component, Corpus, Exporter

P = ParamSpec("P")
T = TypeVar("T")
_PASSED = (PipelineError, Interrupted, StopRequested, KeyboardInterrupt)


class calling(AbstractContextManager[None]):  # noqa: N801 - reads as a statement: `with calling(loss):`
    """Context manager for a call into a component: any exception, even SystemExit, becomes a PluginError.

    Not converted: the project's own errors, requests to stop, and out-of-memory errors while a model computes, for
    which the caller has a better message.

    Args:
        component: The component, or its class.
        passes: More exception types that are not converted, because the caller handles them.
        when: When the call happens, for the message, such as "at step 3".
    """

    def __init__(
        self, component: Component | type[Component], passes: tuple[type[BaseException], ...] = (), when: str = ""
    ) -> None:
        self._component, self._passes, self._when = component, (*_PASSED, *passes), when

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, self._passes):
            return
        if out_of_memory(error) and not isinstance(self._component, type | Corpus | Exporter):
            return
        what = short_label(self._component) + (f", {self._when}," if self._when else "")
        raise PluginError(
            f"{what} raised {describe_exception(error)} ({location(self._component, error)})"
        ) from error


def guarded(call: Callable[P, T], component: Component) -> Callable[P, T]:
    """`call` wrapped so that each call runs inside `calling(component)`."""

    @wraps(call)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with calling(component):
            return call(*args, **kwargs)

    return inside


def supported_arguments(component: Component, method: str, **available: Any) -> dict[str, Any]:
    """The `available` keyword arguments that the method has parameters for (see `Kind.optional_arguments`)."""
    names = _parameters(type(component), method)
    return {name: value for name, value in available.items() if name in names}


@lru_cache
def _parameters(cls: type, method: str) -> frozenset[str]:
    return frozenset(inspect.signature(getattr(cls, method)).parameters)


def guarded_items(
    component: Component, items: Callable[[], Iterable[T]], passes: tuple[type[BaseException], ...] = ()
) -> Iterator[T]:
    """Yields the items that `items` returns; each is computed inside `calling(component)`."""
    with calling(component, passes):
        iterator = iter(items())
    while True:
        with calling(component, passes):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


_NAME = re.compile(r"[\w%@+-]+([./ ][\w%@+-]+)*")


def check_numbers(numbers: Any, where: str) -> None:
    """Raises PluginError unless `numbers` is a dict of finite numbers. `where` names the component's method."""
    if not isinstance(numbers, dict):
        raise PluginError(f"{where} must return a dict of numbers (an empty one for none), not {numbers!r}")
    for name, value in numbers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(f"{where} returned a number named {name!r}: use letters, digits, _, and dots between")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PluginError(f"{where} returned {name!r}: {value!r}; it must be a number: call float() on it")
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise PluginError(f"{where} returned {name!r}, not a finite number that a float can hold: leave it out")


def short_label(component: Component | type[Component]) -> str:
    """The component's kind and name for messages, such as: the loss 'focal'."""
    cls = component if isinstance(component, type) else type(component)
    kind = next((kind.singular for kind in KINDS.values() if issubclass(cls, kind.base)), "component")
    return f"the {kind} {getattr(cls, 'name', cls.__name__)!r}"


def label(component: Component | type[Component]) -> str:
    """The component's kind, name and file for messages."""
    return f"{short_label(component)} ({location(component)})"


def location(component: Component | type[Component], error: BaseException | None = None) -> str:
    """The component's file, with the line in the plugin's code from which `error` came, if it came from there."""
    module = (component if isinstance(component, type) else type(component)).__module__
    line = error_location(error, _code(module)) if error else ""
    return line or display_path(getattr(sys.modules.get(module), "__file__", None) or module)


def plugin_error(error: BaseException) -> PluginError | None:
    """The PluginError for an exception from a plugin's code outside of `calling`; None for any other exception."""
    classes, modules = [Component], set()
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        modules.add(cls.__module__)
    for module in sorted(modules):
        if not module.startswith("pipeline.") and (line := error_location(error, _code(module))):
            return PluginError(f"the plugin {line} raised {describe_exception(error)}")
    return None


def error_location(error: BaseException, code: Path | None) -> str:
    """The innermost frame of the exception that is in `code` (a file or a package's folder), as "FILE line N";
    empty if no frame is."""
    trace = traceback.extract_tb(error.__traceback__) if code else []
    frames = [frame for frame in trace if Path(frame.filename).is_relative_to(code or "")]
    return f"{display_path(frames[-1].filename)} line {frames[-1].lineno}" if frames else ""


def _code(module: str) -> Path | None:
    """The file of a plugin's module, or the folder of its package."""
    parts = module.split(".")
    root = ".".join(parts[:3]) if parts[0] == "plugins" else parts[0]
    file = getattr(sys.modules.get(root), "__file__", None)
    return package_of(Path(file)) if file else None


def package_of(file: Path) -> Path:
    """The module's file, or its folder if the file is a package's `__init__.py`."""
    return file.parent if file.name == "__init__.py" else file


def display_path(file: str) -> str:
    """The path relative to the current folder if the file is below it, else the given path."""
    path, here = Path(file), Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else file
