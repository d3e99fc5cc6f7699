"""A small standard library, for the corpora that read the one of the installed Python."""

from __future__ import annotations

from pathlib import Path

SHARED = "Return the shared text of two modules."
MODULE = '''"""Read and write {0} files."""

class {0}Reader:
    """A reader that is {0}. It raises ValueError at the end."""

    def read(self, size=-1, *, {0}=None):
        """Read up to {0} size bytes from the file and return them.

        Raises KeyError or OSError if the file was closed by {0} before.
        """

    def close(self):
        """Close the {0} file; nothing can be read after that."""

def find(path, *names, **options):
    """Find every {0} below the path that has one of the names."""

def shared():
    """{1}"""
'''


def make_library(folder: Path) -> Path:
    """Writes 60 modules, and the documentation topics. The text `SHARED` is in every second module."""
    for number in range(60):
        text = SHARED if number % 2 else f"Return the text of module {number} and no other."
        (folder / f"m{number}.py").write_text(MODULE.format(f"color{number}", text))
    (folder / "pydoc_data").mkdir()
    (folder / "pydoc_data" / "topics.py").write_text("topics = {'assert': 'A statement about colors.'}")
    return folder
