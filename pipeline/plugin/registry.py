"""Finds components in the project's plugins/ folders and in installed packages."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.core.console import say
from pipeline.core.environment import version_and_code
from pipeline.core.errors import ParamsError, PluginError, describe_exception
from pipeline.core.source import package_closure
from pipeline.plugin.calls import display_path, error_location, package_of
from pipeline.plugin.components import KINDS, Component, Kind
from pipeline.plugin.contract import registered_components
from pipeline.plugin.options import with_options

ENTRY_POINTS = "pipeline.plugins"


@dataclass(frozen=True)
class Entry:
    """A component and its source.

    Attributes:
        component: The class.
        source: The project's file or the installed package, for messages.
        file: The absolute path of the module that registers it.
        distribution: Name and version of the installed package; None for a file of the project.
    """

    component: type[Component]
    source: str
    file: Path
    distribution: tuple[str, str] | None = None


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded.

    Attributes:
        source: The project's file or the installed package, for messages.
        message: The error, in one line that begins with the source.
        kinds: The kinds of which it may have components.
        names: The (kind, name) of its components, as far as known.
        distribution: Name and version of the installed package; None for a file of the project.
    """

    source: str
    message: str
    kinds: frozenset[str]
    names: frozenset[tuple[str, str]] = frozenset()
    distribution: tuple[str, str] | None = None


class Registry:
    """The components of the requested kinds, and the plugins that could not be loaded.

    A broken plugin is an error only if params.yaml selects one of its components; otherwise it is a note.
    """

    def __init__(
        self, kinds: Iterable[str] = tuple(KINDS), note: Callable[[str], None] = say, folder: Path | None = None
    ) -> None:
        self.broken: list[Broken] = []
        self._entries: dict[str, dict[str, Entry]] = {plural: {} for plural in kinds}
        self._note = note
        self._folder = folder
        self._built: set[str] = set()
        self._noted: set[str] = set()

    @classmethod
    def load(
        cls, plugins: Path | None, kinds: Iterable[str] = tuple(KINDS), note: Callable[[str], None] = say
    ) -> Registry:
        """Loads the folders of the given kinds below `plugins` (None: no folders), and the installed packages.

        Args:
            plugins: The plugins folder of the project.
            kinds: Plurals, such as "losses".
            note: Called with each note about a plugin or options that are not used.
        """
        registry = cls(kinds, note, plugins)
        if plugins:
            for plural in registry._entries:
                for path in plugin_files(plugins / plural):
                    registry._add_file(path, path.relative_to(plugins.parent).as_posix(), KINDS[plural])
        for point in metadata.entry_points(group=ENTRY_POINTS):
            distribution = (point.dist.name, point.dist.version) if point.dist else None
            package = f" of package {' '.join(distribution)}" if distribution else ""
            source = f"entry point {point.name} = {point.value}{package}"
            registry._add(point.load, source, distribution=distribution)
        return registry

    @classmethod
    def of_file(cls, file: Path, source: str) -> Registry:
        """Loads a single plugin file from any folder, with components of any kind. `source` is its name in
        messages."""
        registry = cls()
        registry._add_file(file, source, None)
        return registry

    def names(self, plural: str) -> list[str]:
        """The names of the components of a kind, sorted."""
        return sorted(self._entries[plural])

    def entries(self, plural: str) -> Iterator[Entry]:
        """The components of a kind, sorted by name."""
        return (self._entries[plural][name] for name in self.names(plural))

    def source_file(self, plural: str, name: str) -> Path:
        """The absolute path of the module that registers the component."""
        return self._entries[plural][name].file

    def distribution(self, plural: str, name: str) -> tuple[str, str] | None:
        """Name and version of the installed package that has the component; None for a file of the project."""
        return self._entries[plural][name].distribution

    def packages(self) -> dict[str, dict[str, str]]:
        """The installed packages with components, by kind and name: their versions, with a digest of their code.

        A broken package is listed under every kind of which it may have components, with its version alone.
        """
        return {plural: self._packages(plural) for plural in self._entries}

    def _packages(self, plural: str) -> dict[str, str]:
        files: dict[tuple[str, str], set[Path]] = {}
        for broken in self.broken:
            if broken.distribution and plural in broken.kinds:
                files[broken.distribution] = set()
        for entry in self.entries(plural):
            if entry.distribution:
                code = package_closure(entry.file) if entry.file.suffix == ".py" else ()
                files.setdefault(entry.distribution, set()).update(code)
        return {name: version_and_code(version, each) for (name, version), each in sorted(files.items())}

    def origins(self, chosen: Iterable[tuple[str, str]]) -> tuple[tuple[Path, ...], dict[str, str]]:
        """The files that register the `chosen` components (kind, name), and the installed packages they come
        from."""
        pairs = list(chosen)
        packages = (self.distribution(plural, name) for plural, name in pairs)
        return tuple(self.source_file(*pair) for pair in pairs), dict(each for each in packages if each)

    def chosen(self, plural: str, params: Any) -> list[Any]:
        """Builds the components of a kind that the params choose, in order; see `build_all`."""
        section, _, key = KINDS[plural].chosen_by.rpartition(".")
        choice = attrgetter(section)(params)
        names = getattr(choice, key)
        return self.build_all(plural, [names] if key == "name" else names, choice.options, section)

    def build(self, plural: str, name: str, options: Mapping[str, Mapping[str, Any]], where: str) -> Any:
        """Builds the component `name` with its options; see `build_all`."""
        return self.build_all(plural, [name], options, where)[0]

    def build_all(
        self, plural: str, names: Iterable[str], options: Mapping[str, Mapping[str, Any]], where: str
    ) -> list[Any]:
        """Builds the components `names`, in this order. The options of all other components are validated as well.

        Options of an unknown component, and broken plugins that are not selected, give a note.

        Args:
            plural: The kind, such as "losses".
            names: The names that params.yaml selects.
            options: The options by component name.
            where: The key in params.yaml, such as "train.loss", for messages.

        Raises:
            ParamsError: a component does not exist, or an option is unknown or out of bounds.
            PluginError: the component is in a plugin that could not be loaded, or its code raised an exception.
        """
        chosen = list(names)
        for name in chosen:
            self.check_there(plural, name, f"{where}.{name}" if name in options else where)
        built = {}
        for name in dict.fromkeys([*chosen, *options]):
            if name in self._entries[plural]:
                component = self._entries[plural][name].component
                built[name] = with_options(component, options.get(name, {}), f"{where}.{name}")
            else:
                self._note_once(f"{where}.{name}: {self._unknown(plural, name)}; its options are ignored")
        self._built.add(plural)
        for broken in self.broken:
            if broken.kinds <= self._built:  # all kinds are built, and none selected it
                self._note_once(f"{broken.message} (not loaded; params.yaml does not use it)")
        return [built[name] for name in chosen]

    def check_there(self, plural: str, name: str, where: str) -> None:
        """Raises ParamsError if no component has this name, PluginError if its plugin is broken or the name is
        ambiguous."""
        for broken in self.broken:
            if (plural, name) in broken.names:
                raise PluginError(f"{where}: {broken.message}")
        if name not in self._entries[plural]:
            if self._folder and not self._folder.is_dir():
                there = f"{self._folder} is missing: run this in the project's folder"
                raise ParamsError(f"{where}: there is no {KINDS[plural].singular} named {name!r}: {there}")
            listed = ", ".join(self.names(plural)) or "none"
            hint = f"new ones go into plugins/{plural}/; experiments in a copy see only files that git tracks"
            broken_ones = [broken.message for broken in self.broken if plural in broken.kinds]
            unloaded = f"; not loaded: {'; '.join(broken_ones)}" if broken_ones else ""
            raise ParamsError(f"{where}: {self._unknown(plural, name)} (there are: {listed}; {hint}){unloaded}")

    def _unknown(self, plural: str, name: str) -> str:
        close = difflib.get_close_matches(name, self.names(plural), n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else ""
        return f"there is no {KINDS[plural].singular} named {name!r}{suggestion}"

    def _note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._note(f"note: {text}")

    def _add_file(self, path: Path, source: str, folder: Kind | None) -> None:
        self._add(lambda: _import_file(path, folder.plural if folder else "elsewhere"), source, path, folder)

    def _add(
        self,
        load: Callable[[], Any],
        source: str,
        path: Path | None = None,
        folder: Kind | None = None,
        distribution: tuple[str, str] | None = None,
    ) -> None:
        """Adds the components of a plugin: all of them, or none and a `Broken` with the error."""
        kinds = [folder] if folder else [KINDS[plural] for plural in self._entries]
        found: dict[tuple[str, str], Entry] = {}
        try:
            module = load()
            if not isinstance(module, ModuleType):
                raise PluginError("the entry point must name a module")
            file = Path(module.__file__ or "").absolute()
            conflict = ""
            for kind, component in registered_components(module, kinds, folder):
                key = (kind.plural, component.name)
                if other := found.get(key) or self._entries[kind.plural].get(component.name):
                    conflict = f"its {kind.singular} {component.name!r} has the name of one in {other.source}"
                found[key] = Entry(component, source, file, distribution)
            if conflict:
                raise PluginError(f"{conflict}: rename or remove one of them")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            message = f"{source}: {_describe_error(error, path)}"
            plurals = frozenset(kind.plural for kind in kinds)
            self.broken.append(Broken(source, message, plurals, frozenset(found), distribution))
            return
        for (plural, name), entry in found.items():
            self._entries[plural][name] = entry


def plugin_files(folder: Path) -> list[Path]:
    """The plugin files in the folder of a kind, sorted: `*.py` and packages; names that start with _ are left
    out."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.glob("*.py") if not path.name.startswith("_")]
    packages = [path for path in folder.glob("*/__init__.py") if not path.parent.name.startswith(("_", "."))]
    return sorted(files + packages)


# ── importing ─────────────────────────────────────────────────────────────────────────────────────


def _import_file(path: Path, plural: str) -> ModuleType:
    if not path.is_file():
        raise PluginError("this is not a regular file: move it out of the folder")
    place = path.parent if path.name == "__init__.py" else path.with_suffix("")
    name = f"plugins.{plural}.{place.name}"
    _set_package(f"plugins.{plural}", place.parent)
    _set_package("plugins", place.parent.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError("Python cannot load this file as a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look up annotations here
    arguments, sys.argv = sys.argv, [str(path)]  # hide the pipeline's command line from the plugin
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        sys.argv = arguments
    return module


def _set_package(name: str, folder: Path) -> None:
    """Makes `name` a package of the modules in `folder`, as Python needs it for `from . import other` in a plugin:
    only `python -m` has the project's folder in sys.path."""
    package = sys.modules.setdefault(name, ModuleType(name))
    package.__path__ = [str(folder)]


def _describe_error(error: BaseException, path: Path | None) -> str:
    """The error in one line: the broken rule, or the plugin's exception and its line."""
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    line = error_location(error, package_of(path) if path else Path("/"))
    return (
        f"{line.removeprefix(f'{display_path(str(path))} ')}: {describe_exception(error)}"
        if line
        else describe_exception(error)
    )
