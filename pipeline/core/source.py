"""Imports and code digests of source files, from their syntax trees."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.core.errors import PluginError

PACKAGE = "pipeline"


def import_closure(module: str, root: Path, plugins: Iterable[Path] = ()) -> set[Path]:
    """The package's files that importing `module` or the files `plugins` can run, relative to `root` (the folder
    above the package).

    It includes imports inside functions. It excludes imports under `if TYPE_CHECKING`, and `__init__.py` files with
    only a docstring.
    """
    names = {module, *(name for path in plugins for level, name in _read(path).imports if not level)}
    first = [file for name in names if name.split(".")[0] == PACKAGE for file in _files(root, name)]
    files = _closure(first, root, lambda name: name == PACKAGE)
    return {path.relative_to(root) for path in files if path.name != "__init__.py" or _read(path).has_code}


def plugin_closure(path: Path, project: Path) -> set[Path]:
    """A plugin's file and the project's files that it imports, directly or indirectly.

    It includes relative imports, absolute imports of files in the folder `project` (such as
    `plugins.losses._shared`) except this package, imports inside functions, and the `__init__.py` of imported
    packages. It excludes imports under `if TYPE_CHECKING`.

    Raises:
        PluginError: a file is not valid Python.
    """
    return _closure([path], project, lambda name: name != PACKAGE)


def package_closure(path: Path) -> set[Path]:
    """The file of an installed plugin and the files of its top-level package that it imports, directly or
    indirectly, as in `plugin_closure`.

    Raises:
        PluginError: a file is not valid Python.
    """
    top = path
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    return _closure([path], top.parent, lambda name: name == top.stem)


def top_level_imports(path: Path) -> set[str]:
    """The top-level packages that a file imports, also inside functions, but not under `if TYPE_CHECKING`.

    Raises:
        PluginError: the file is not valid Python.
    """
    return {name.partition(".")[0] for level, name in _read(path).imports if level == 0}


def code_digest(path: Path) -> str:
    """The sha256 of a file's code, in hexadecimal; comments, docstrings and formatting do not change it.

    All string statements are ignored, including the docstrings of a pydantic model's fields. The digest depends on
    Python's minor version, which decides the syntax tree.

    Raises:
        PluginError: the file is not valid Python.
    """
    return _read(path).digest


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _closure(files: Iterable[Path], root: Path, follow: Callable[[str], bool]) -> set[Path]:
    """The files and their imports: relative ones, and those from top-level packages in `root` that `follow`
    accepts."""
    seen: set[Path] = set()
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for level, name in _read(path).imports:
            if level:
                waiting += [file for folder in path.parents[level - 1 : level] for file in _files(folder, name)]
            elif follow(name.split(".")[0]):
                waiting += _files(root, name)
    return seen


def _files(folder: Path, name: str) -> Iterator[Path]:
    """The files that importing the module `name` from `folder` runs: the module and the `__init__.py` of
    packages."""
    path = folder
    if (path / "__init__.py").is_file():
        yield path / "__init__.py"
    for part in filter(None, name.split(".")):
        path /= part
        yield from [each for each in (path / "__init__.py", path.with_suffix(".py")) if each.is_file()][:1]


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, f"{node.module or ''}.{alias.name}") for alias in node.names)


def _running(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements except those under `if TYPE_CHECKING`, and what has a body."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            waiting += node.orelse
        else:
            waiting += [each for body in _bodies(node) for each in body]


def _bodies(node: ast.AST) -> Iterator[list[ast.AST]]:
    """The lists of statements, handlers and cases in a node. Expressions, which are most of a tree, have none."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        body = getattr(node, name, None)
        if isinstance(body, list):
            yield body


def _is_type_checking(test: ast.expr) -> bool:
    if isinstance(test, ast.Attribute) and isinstance(test.value, ast.Name) and test.value.id == "typing":
        return test.attr == "TYPE_CHECKING"
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _remove_strings(tree: ast.Module) -> None:
    waiting: list[ast.AST] = [tree]
    while waiting:
        for body in _bodies(waiting.pop()):
            body[:] = [each for each in body if not _is_string(each)]
            waiting += body


@dataclass(frozen=True)
class _Source:
    """What a file's syntax tree says."""

    imports: tuple[tuple[int, str], ...]
    """The modules that it may import, as (level, name), level 0 for absolute. `from a import b` may import a.b."""
    has_code: bool
    """Whether there is more than strings."""
    digest: str


def _read(path: Path) -> _Source:
    try:
        return _analyse(path.read_bytes())
    except SyntaxError as error:
        raise PluginError(f"{path} line {error.lineno}: {type(error).__name__}: {error.msg}") from None
    except ValueError as error:  # Python 3.11 on a null byte
        raise PluginError(f"{path}: not valid Python: {error}") from None


@lru_cache(maxsize=1024)  # a closure and the digests of its files read the same sources
def _analyse(source: bytes) -> _Source:
    tree = ast.parse(source)
    imports = tuple(_imports(tree))
    has_code = not all(_is_string(node) for node in tree.body)
    _remove_strings(tree)
    digest = hashlib.sha256(ast.dump(tree, annotate_fields=False).encode()).hexdigest()
    return _Source(imports=imports, has_code=has_code, digest=digest)
