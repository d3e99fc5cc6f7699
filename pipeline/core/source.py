"""Which files of this project a module runs: its imports, followed through the source without running it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = "pipeline"


def import_closure(module: str, root: Path) -> set[Path]:
    """The project's files that importing `module` can run, relative to `root` (the folder above the package).

    Imports inside functions count; those under `if TYPE_CHECKING` do not; nor do packages whose
    `__init__.py` holds only a docstring.
    """
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path(name, root)
        if path is None or name in seen:
            continue
        seen.add(name)
        waiting += _imports(ast.parse(path.read_bytes()), name)
        waiting += [name.rpartition(".")[0]] if "." in name else []
    paths = (_path(name, root) for name in seen)
    return {path.relative_to(root) for path in paths if path is not None and not _is_bare(path)}


def _path(name: str, root: Path) -> Path | None:
    if name.split(".")[0] != PACKAGE:
        return None
    base = root.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(tree: ast.Module, name: str) -> list[str]:
    found: list[str] = []
    for node in _running(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _running(node: ast.AST) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        nodes += [child, *_running(child)]
    return nodes


def _is_bare(path: Path) -> bool:
    body = ast.parse(path.read_bytes()).body
    return path.name == "__init__.py" and all(isinstance(node, ast.Expr) for node in body)
