"""The default corpus, the documentation that is part of every Python installation, and questions about it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pipeline.plugin import Corpus, Document, hookimpl

from .library import modules, standard_library
from .questions import PythonQuestions


class PythonDocs(Corpus):
    """Python's documentation topics and the standard library's docstrings: about 2 MB of technical English."""

    name: ClassVar[str] = "python_docs"

    def notes(self, root: Path) -> Iterator[str]:
        if root.is_dir() and any(root.iterdir()):
            yield "data/raw has texts, but tokenize.corpus.name is python_docs: set it to files to read them"

    def documents(self, root: Path) -> Iterator[Document]:
        library = standard_library()
        topics = library / "pydoc_data" / "topics.py"
        if not topics.is_file():
            raise FileNotFoundError(
                f"{topics} is missing: this Python has no documentation topics: install its "
                "full standard library, or use your own texts (tokenize.corpus.name: files)"
            )
        yield from _topics(topics)
        for name, docstrings in modules(library):
            yield Document(name, "\n\n".join(text for _, text in docstrings) + "\n")


def _topics(path: Path) -> Iterator[Document]:
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for name, text in sorted(ast.literal_eval(node.value).items()):
                yield Document(f"topics/{name}", text.strip() + "\n")


@hookimpl
def register_corpora() -> list[type[Corpus]]:
    return [PythonDocs, PythonQuestions]
