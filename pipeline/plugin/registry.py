"""Finds, checks and names the components: from the project's plugins/ folders and from installed packages."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
from pydantic import PydanticUserError, ValidationError
from pydantic_core import PydanticUndefined

from pipeline.core.errors import ParamsError, PluginError
from pipeline.plugin import hookspecs
from pipeline.plugin.components import KINDS, Component, Kind

ENTRY_POINTS = "pipeline.plugins"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_EXPECTED = {"tuple_type": "a list", "dict_type": "a section of keys", "model_type": "a section of keys"}


@dataclass(frozen=True)
class Entry:
    """A component and where it came from.

    Attributes:
        component: The class.
        source: The project's file or the installed package, as messages show it.
        file: The absolute path of the module that registers it.
        distribution: Name and version of the installed package; None for a file of the project.
    """

    component: type[Component]
    source: str
    file: Path
    distribution: tuple[str, str] | None = None


class Registry:
    """The components of the kinds that were asked for."""

    def __init__(self, entries: Mapping[str, Mapping[str, Entry]]) -> None:
        self._entries = entries

    @classmethod
    def load(cls, plugins: Path, kinds: Iterable[str] = tuple(KINDS)) -> Registry:
        """Loads the given kinds' folders under `plugins`, and the installed packages.

        Raises:
            PluginError: a plugin cannot be imported, breaks its contract, or two share a name. The
                message names the plugin's file or package.
        """
        wanted = {plural: KINDS[plural] for plural in kinds}
        entries: dict[str, dict[str, Entry]] = {plural: {} for plural in wanted}
        for plural, kind in wanted.items():
            for path in plugin_files(plugins / plural):
                source = _shown(path, plugins.parent)
                _collect(_import_file(path, plural, source), source, {plural: kind}, entries, kind)
        for point in metadata.entry_points(group=ENTRY_POINTS):
            source = _shown_entry_point(point)
            distribution = (point.dist.name, point.dist.version) if point.dist else None
            _collect(_import_entry_point(point, source), source, wanted, entries, distribution=distribution)
        return cls(entries)

    @classmethod
    def of_file(cls, file: Path, source: str) -> Registry:
        """The components of one plugin file, wherever it lies and whatever their kinds; `source` names it."""
        entries: dict[str, dict[str, Entry]] = {plural: {} for plural in KINDS}
        _collect(_import_file(file, "elsewhere", source), source, KINDS, entries)
        return cls(entries)

    def names(self, plural: str) -> list[str]:
        """The names of a kind's components, sorted."""
        return sorted(self._entries[plural])

    def entries(self, plural: str) -> Iterator[Entry]:
        """A kind's components, sorted by name."""
        return (self._entries[plural][name] for name in self.names(plural))

    def source_file(self, plural: str, name: str) -> Path:
        """The absolute path of the module that registers a component: a project's file, or an installed one."""
        return self._entries[plural][name].file

    def distribution(self, plural: str, name: str) -> tuple[str, str] | None:
        """Name and version of the installed package that brings a component; None for a file of the project."""
        return self._entries[plural][name].distribution

    def build(self, plural: str, name: str, options: Mapping[str, Mapping[str, Any]], where: str) -> Any:
        """The component `name` with its options; the options of those not chosen are checked as well.

        Args:
            plural: The kind, such as "losses".
            name: What params.yaml chose.
            options: Options by component name.
            where: The place in params.yaml, such as "train.loss", for messages.

        Raises:
            ParamsError: there is no such component, or an option is unknown or out of bounds.
        """
        built = {}
        for each in dict.fromkeys([name, *options]):
            if each not in self._entries[plural]:
                raise ParamsError(self._unknown(plural, each, f"{where}.{each}" if each in options else where))
            try:
                built[each] = self._entries[plural][each].component(**options.get(each, {}))
            except ValidationError as error:
                known = list(self._entries[plural][each].component.model_fields)
                raise ParamsError(explain(error, f"{where}.{each}", known)) from None
        return built[name]

    def build_all(
        self, plural: str, names: Iterable[str], options: Mapping[str, Mapping[str, Any]], where: str
    ) -> list[Any]:
        """The components `names`, in that order; see `build`."""
        chosen = list(names)
        for name in options:  # also when nothing at all is chosen
            self.build(plural, name, options, where)
        return [self.build(plural, name, options, where) for name in chosen]

    def _unknown(self, plural: str, name: str, where: str) -> str:
        known = self.names(plural)
        close = difflib.get_close_matches(name, known, n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else ""
        kind = KINDS[plural].singular
        listed = ", ".join(known) or "none"
        return (
            f"{where}: there is no {kind} named {name!r}{suggestion} (there are: {listed}; "
            f"a new one goes into plugins/{plural}/, and experiments in a copy see only what git tracks)"
        )


def plugin_files(folder: Path) -> list[Path]:
    """The plugin files of a kind's folder, sorted: `*.py` and packages, names starting with _ left out."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.glob("*.py") if not path.name.startswith("_")]
    packages = [path for path in folder.glob("*/__init__.py") if not path.parent.name.startswith(("_", "."))]
    return sorted(files + packages)


def explain(error: ValidationError, where: str, known: Sequence[str] = ()) -> str:
    """A validation error as one line: each place, what is wrong there, and a suggestion for a misspelling."""
    parts = []
    for item in error.errors():
        place = ".".join([where, *(str(part) for part in item["loc"])]).strip(".")
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such key" + (f" (there are: {', '.join(known)})" if known else "")
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"] in _EXPECTED:
            message = f"input should be {_EXPECTED[item['type']]}, not {item['input']!r}"
        elif item["type"] != "value_error":
            message = f"{message[:1].lower()}{message[1:]}, not {item['input']!r}"
        parts.append(f"{place}: {message}")
    return "; ".join(parts)


# ── importing ─────────────────────────────────────────────────────────────────────────────────────


def _import_file(path: Path, plural: str, source: str) -> ModuleType:
    stem = path.parent.name if path.name == "__init__.py" else path.stem
    name = f"plugins.{plural}.{stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{source}: Python cannot load this file as a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look annotations up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PluginError(f"{source}: {_cause(error, path)}") from error
    return module


def _import_entry_point(point: metadata.EntryPoint, source: str) -> ModuleType:
    try:
        module = point.load()
    except Exception as error:
        raise PluginError(f"{source}: {type(error).__name__}: {_one_line(error)}") from error
    if not isinstance(module, ModuleType):
        raise PluginError(f"{source}: the entry point must name a module, not {point.value!r}")
    return module


def _cause(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = f"line {frames[-1].lineno}: " if frames else ""
    return f"{line}{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _shown_entry_point(point: metadata.EntryPoint) -> str:
    package = f" of package {point.dist.name} {point.dist.version}" if point.dist else ""
    return f"entry point {point.name} = {point.value}{package}"


# ── collecting and checking ───────────────────────────────────────────────────────────────────────


def _collect(
    module: ModuleType,
    source: str,
    kinds: Mapping[str, Kind],
    entries: dict[str, dict[str, Entry]],
    folder: Kind | None = None,
    distribution: tuple[str, str] | None = None,
) -> None:
    """Adds what `module` registers to `entries`, after checking every part of the plugin contract."""
    hooks = {kind.hook: kind for kind in KINDS.values()}
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    _check_marks(module, source, hooks, manager)
    try:
        manager.register(module)
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{source}: {_one_line(error)}") from None
    registered = {name: kind for name, kind in hooks.items() if getattr(manager.hook, name).get_hookimpls()}
    if folder and set(registered) - {folder.hook}:
        other = registered[min(set(registered) - {folder.hook})]
        raise PluginError(
            f"{source}: registers {other.plural}, but this folder is for {folder.plural}: "
            f"move it to plugins/{other.plural}/"
        )
    if not registered:
        expected = folder.hook if folder else "register_losses"
        raise PluginError(
            f"{source}: registers nothing: add `@hookimpl def {expected}()` that returns a list of component "
            "classes (a file that is no plugin starts with _)"
        )
    for kind in kinds.values():
        for implementation in getattr(manager.hook, kind.hook).get_hookimpls():
            for component in _call(implementation, kind, source):
                _check_component(component, kind, source)
                known = entries[kind.plural].get(component.name)
                if known:
                    raise PluginError(
                        f"two {kind.plural} are named {component.name!r}: one in {known.source}, one in "
                        f"{source}: rename one of them"
                    )
                entries[kind.plural][component.name] = Entry(
                    component, source, Path(module.__file__ or "").absolute(), distribution
                )


def _check_marks(module: ModuleType, source: str, hooks: Mapping[str, Kind], manager: pluggy.PluginManager) -> None:
    """A misspelt hook and a forgotten mark are silent in pluggy: here they are errors."""
    for name, value in vars(module).items():
        if not inspect.isroutine(value):
            continue
        marked = manager.parse_hookimpl_opts(module, name) is not None
        if marked and name not in hooks:
            close = difflib.get_close_matches(name, hooks, n=1, cutoff=0.4)
            suggestion = f"did you mean {close[0]}?" if close else f"there are: {', '.join(hooks)}"
            raise PluginError(f"{source}: there is no hook named {name}; {suggestion}")
        if name in hooks and not marked:
            raise PluginError(f"{source}: {name} is not marked: put @hookimpl above it")


def _call(implementation: Any, kind: Kind, source: str) -> list[Any]:
    try:
        components = implementation.function()
    except Exception as error:
        raise PluginError(f"{source}: {kind.hook} raised {type(error).__name__}: {_one_line(error)}") from error
    if not isinstance(components, list):
        raise PluginError(f"{source}: {kind.hook} must return a list of classes, not {components!r}")
    return components


def _check_component(component: Any, kind: Kind, source: str) -> None:
    base = kind.base
    if not (isinstance(component, type) and issubclass(component, base)):
        shown = component.__name__ if isinstance(component, type) else repr(component)
        raise PluginError(
            f"{source}: {kind.hook} returned {shown}, which is no subclass of {base.__name__}"
            + ("" if isinstance(component, type) else ": return the class itself")
        )
    shown = f"{source}: {component.__name__}"
    missing = sorted(component.__abstractmethods__)
    if missing:
        raise PluginError(f"{shown} has no method {missing[0]}: {base.__name__} needs it")
    name = getattr(component, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {"name", "use"}:
        raise PluginError(
            f'{shown} needs a name: write `name: ClassVar[str] = "my_{kind.singular.replace(" ", "_")}"` '
            "(lower-case letters, digits and _)"
        )
    if not component.__dict__.get("__doc__"):
        raise PluginError(f"{shown} has no docstring: its first line describes it in `pipeline plugins`")
    if not component.model_config.get("frozen") or component.model_config.get("extra") != "forbid":
        raise PluginError(f"{shown} must stay frozen and must forbid unknown options: leave model_config as it is")
    try:
        component.model_rebuild()
    except (NameError, PydanticUserError) as error:
        raise PluginError(f"{shown} has an option whose type is not known: {_one_line(error)}") from None
    for option, field in component.model_fields.items():
        if field.default is PydanticUndefined and field.default_factory is None:
            raise PluginError(f"{shown}.{option} has no default: naming the component must be enough to use it")
    for method in sorted(base.__abstractmethods__):
        expected = list(inspect.signature(getattr(base, method)).parameters)
        try:
            inspect.signature(getattr(component, method)).bind(*expected)
        except TypeError:
            arguments = ", ".join(expected)
            raise PluginError(f"{shown}.{method} must take ({arguments})") from None
