"""The default corpus: the documentation that is part of every Python installation."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pipeline.plugin import Corpus, Document, hookimpl

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


class PythonDocs(Corpus):
    """Python's documentation topics and the standard library's docstrings: about 2 MB of technical English."""

    name: ClassVar[str] = "python_docs"

    def notes(self, root: Path) -> Iterator[str]:
        if root.is_dir() and any(root.iterdir()):
            yield "data/raw has texts, but tokenize.corpus.name is python_docs: set it to files to read them"

    def documents(self, root: Path) -> Iterator[Document]:
        library = Path(sysconfig.get_path("stdlib"))
        topics = library / "pydoc_data" / "topics.py"
        if not topics.is_file():
            raise FileNotFoundError(
                f"{topics} is missing: this Python has no documentation topics: install its "
                "full standard library, or use your own texts (tokenize.corpus.name: files)"
            )
        yield from _topics(topics)
        yield from _docstrings(library)


def _topics(path: Path) -> Iterator[Document]:
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for name, text in sorted(ast.literal_eval(node.value).items()):
                yield Document(f"topics/{name}", text.strip() + "\n")


def _docstrings(library: Path) -> Iterator[Document]:
    """One document per module with its docstrings in order. Repeated docstrings are left out."""
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if _LEFT_OUT.intersection(module.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # some distributions ship templates that are not valid Python
        docstrings = [text for text in _walk(tree) if not (text in seen or seen.add(text))]
        if docstrings:
            yield Document(f"library/{module.as_posix()}", "\n\n".join(docstrings) + "\n")


def _walk(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = (ast.get_docstring(node) or "").strip()
        # UTF-8 cannot encode lone surrogates, which may be written as escapes.
        if text and text.encode("utf-8", "ignore").decode() == text:
            yield text
    for child in ast.iter_child_nodes(node):
        yield from _walk(child)


@hookimpl
def register_corpora() -> list[type[Corpus]]:
    return [PythonDocs]
