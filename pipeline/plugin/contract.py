"""The contract of a plugin's module: which components it registers, checked before they are used."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

import pluggy
from pydantic import PydanticUserError
from pydantic_core import PydanticUndefined

from pipeline.core.errors import PluginError, describe_exception
from pipeline.plugin import hookspecs
from pipeline.plugin.components import CALLBACK_METHODS, KINDS, Component, Corpus, EvalCallback, Kind
from pipeline.plugin.options import options_schema

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def registered_components(
    module: ModuleType, kinds: Iterable[Kind], folder: Kind | None
) -> Iterator[tuple[Kind, type[Component]]]:
    """Yields the validated components of these kinds that `module` registers.

    Raises:
        PluginError: the module or a component breaks a rule of the contract.
    """
    hooks = {kind.hook: kind for kind in KINDS.values()}
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    _check_hook_names(module, hooks, manager)
    try:
        manager.register(module)
    except pluggy.PluginValidationError as error:
        raise PluginError(describe_exception(error)) from None
    registered = {name: kind for name, kind in hooks.items() if getattr(manager.hook, name).get_hookimpls()}
    if folder and set(registered) - {folder.hook}:
        other = registered[min(set(registered) - {folder.hook})]
        raise PluginError(
            f"registers {other.plural}, but this folder is for {folder.plural}: move it to plugins/{other.plural}/"
        )
    if not registered:
        expected = folder.hook if folder else "register_losses"
        raise PluginError(
            f"registers nothing: add `@hookimpl def {expected}()` that returns a list of component "
            "classes (the name of a file that is not a plugin must start with _)"
        )
    for kind in kinds:
        for implementation in getattr(manager.hook, kind.hook).get_hookimpls():
            components = implementation.function()
            if not isinstance(components, list):
                raise PluginError(f"{kind.hook} must return a list of classes, not {components!r}")
            for component in components:
                _check_component(component, kind)
                yield kind, component


def _check_hook_names(module: ModuleType, hooks: Mapping[str, Kind], manager: pluggy.PluginManager) -> None:
    """Raises PluginError for a misspelt hook and a missing @hookimpl, which pluggy ignores silently."""
    for name, value in vars(module).items():
        if not inspect.isroutine(value):
            continue
        marked = manager.parse_hookimpl_opts(module, name) is not None
        if marked and name not in hooks:
            close = difflib.get_close_matches(name, hooks, n=1, cutoff=0.4)
            suggestion = f"did you mean {close[0]}?" if close else f"there are: {', '.join(hooks)}"
            raise PluginError(f"there is no hook named {name}; {suggestion}")
        if name in hooks and not marked:
            raise PluginError(f"{name} is not marked: put @hookimpl above it")


def _check_component(component: Any, kind: Kind) -> None:
    base = kind.base
    if not (isinstance(component, type) and issubclass(component, base)):
        class_name = component.__name__ if isinstance(component, type) else repr(component)
        raise PluginError(
            f"{kind.hook} returned {class_name}, which is not a subclass of {base.__name__}"
            + ("" if isinstance(component, type) else ": return the class itself")
        )
    class_name = component.__name__
    missing = sorted(component.__abstractmethods__)
    if missing:
        raise PluginError(f"{class_name} has no method {missing[0]}: {base.__name__} needs it")
    name = getattr(component, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {"name", "use"}:
        raise PluginError(
            f'{class_name} needs a name: write `name: ClassVar[str] = "my_{kind.singular.replace(" ", "_")}"` '
            "(lower-case letters, digits and _)"
        )
    if not component.__dict__.get("__doc__"):
        raise PluginError(f"{class_name} has no docstring: add one, whose first line `pipeline plugins` shows")
    if not component.model_config.get("frozen") or component.model_config.get("extra") != "forbid":
        raise PluginError(
            f"{class_name} must be frozen and forbid unknown options: do not override these in model_config"
        )
    if is_dataclass(component):
        raise PluginError(f"{class_name} is a pydantic model, not a dataclass: remove @dataclass")
    try:
        component.model_rebuild()
    except (NameError, PydanticUserError) as error:
        raise PluginError(f"{class_name} has an option with an unknown type: {describe_exception(error)}") from None
    for option, field in component.model_fields.items():
        if field.default is PydanticUndefined and field.default_factory is None:
            raise PluginError(
                f"{class_name}.{option} has no default: give it one, so that the component works without options"
            )
    options_schema(component)
    for flag in ("records_only", "works_on_shards"):
        if not isinstance(getattr(component, flag, False), bool):
            raise PluginError(f"{class_name}.{flag} must be True or False")
    _check_corpus(component)
    _check_callback(component)
    optional = {name for name, value in vars(base).items() if inspect.isfunction(value) and name[0] != "_"}
    for method in sorted(base.__abstractmethods__ | optional):
        expected = list(inspect.signature(getattr(base, method)).parameters)
        signature = inspect.signature(getattr(component, method))
        allowed = kind.optional_arguments if method in base.__abstractmethods__ else ()
        try:
            signature.bind(*expected, **{name: None for name in allowed if name in signature.parameters})
        except TypeError:
            more = f", and may take {', '.join(allowed)}" if allowed else ""
            raise PluginError(f"{class_name}.{method} must take ({', '.join(expected)}){more}") from None


def _check_corpus(component: type[Component]) -> None:
    if not issubclass(component, Corpus) or component.documents is not Corpus.documents:
        return
    if component.sources is Corpus.sources or component.read is Corpus.read:
        raise PluginError(f"{component.__name__} has no method documents: Corpus needs it, or sources and read")


def _check_callback(component: type[Component]) -> None:
    if not issubclass(component, EvalCallback):
        return
    if not any(map(component.has, CALLBACK_METHODS)):
        raise PluginError(
            f"{component.__name__} overrides no method: override one of {', '.join(CALLBACK_METHODS)}"
        )
    if component.records_only and component.has("eval_weights"):
        raise PluginError(f"{component.__name__} has eval_weights, so it does not only record: remove records_only")
