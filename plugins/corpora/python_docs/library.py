"""The docstrings of the installed standard library, module by module."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "__pycache__",
}
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
"""The fields of a syntax tree in which definitions stand, in the order of the source."""


def standard_library() -> Path:
    """The folder of the installed standard library."""
    return Path(sysconfig.get_path("stdlib"))


def modules(library: Path) -> Iterator[tuple[str, list[tuple[Documented, str]]]]:
    """The modules with docstrings, in order: a module's name, such as "library/asyncio/tasks.py", and its
    docstrings in order, each with what it documents. A docstring that an earlier one equals is left out."""
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if _LEFT_OUT.intersection(module.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # some distributions ship templates that are not valid Python
        docstrings = [(node, text) for node, text in _walk(tree) if not (text in seen or seen.add(text))]
        if docstrings:
            yield f"library/{module.as_posix()}", docstrings


def _walk(node: ast.AST) -> Iterator[tuple[Documented, str]]:
    if isinstance(node, Documented):
        text = (ast.get_docstring(node) or "").strip()
        # UTF-8 cannot encode lone surrogates, which may be written as escapes.
        if text and text.encode("utf-8", "ignore").decode() == text:
            yield node, text
    for block in _BLOCKS:
        for child in getattr(node, block, ()):
            yield from _walk(child)
