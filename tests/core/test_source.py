"""What a source file runs: which files and packages it imports, and whether its code is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import PluginError
from pipeline.core.source import code_digest, import_closure, plugin_closure, top_level_imports

CODE = '''"""A module."""

from pydantic import BaseModel


class Options(BaseModel):
    """Its options."""

    rate: float = 0.1
    """How fast."""

    def scaled(self, by: float) -> float:
        """The rate, scaled."""
        return self.rate * (1 + by)  # never 0
'''


def write(root: Path, files: dict[str, str]) -> None:
    """Writes files by their paths, which need no .py."""
    for name, content in files.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def digest(root: Path, code: str) -> str:
    (root / "code.py").write_text(code)
    return code_digest(root / "code.py")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # never 0", ""),
        ('"""A module."""\n', "# No docstring.\n"),
        ('    """Its options."""\n', ""),
        ('"""How fast."""', '"""How fast the weights follow."""'),
        ('        """The rate, scaled."""\n', ""),
        ("self.rate * (1 + by)", "(\n            self.rate\n            * (1 + by)\n        )"),
        ("0.1", "0.10"),
        ("\n\n", "\n\n\n\n"),
    ],
)
def test_comments_docstrings_and_formatting_leave_the_digest_as_it_is(tmp_path: Path, old: str, new: str) -> None:
    assert CODE.count(old)
    assert digest(tmp_path, CODE.replace(old, new)) == digest(tmp_path, CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.1", "0.2"),
        ("0.1", "1"),
        ("(1 + by)", "1 + by"),
        ("rate", "pace"),
        ("by: float", "by: int"),
        ("from pydantic import BaseModel", "from pydantic import BaseModel, Field"),
        ("return self", "return -self"),
    ],
)
def test_other_code_has_another_digest(tmp_path: Path, old: str, new: str) -> None:
    assert CODE.count(old)
    assert digest(tmp_path, CODE.replace(old, new)) != digest(tmp_path, CODE)


def test_1_and_true_and_a_text_are_different_code(tmp_path: Path) -> None:
    assert len({digest(tmp_path, f"x = {value}\n") for value in ("1", "1.0", "True", "'1'", "b'1'")}) == 5


@pytest.mark.parametrize("content", [b"x =\n", b"x = '\xff'\n", b"x\0\n"])
def test_a_file_that_is_no_python_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(content)
    for function in (code_digest, lambda path: plugin_closure(path, tmp_path), top_level_imports):
        with pytest.raises(PluginError, match=r"broken\.py"):
            function(path)


# ── relative imports ──────────────────────────────────────────────────────────────────────────────


def closure(root: Path, file: str) -> set[str]:
    return {path.relative_to(root).as_posix() for path in plugin_closure(root / file, root)}


def test_relative_imports_are_followed_through_helpers_packages_and_functions(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "losses/mine": "from ._helper import scale\ndef f():\n    from ._late import x\n",
            "losses/_helper": "from . import _shared\n",
            "losses/_shared": "from ._parts.deep import y\n",
            "losses/_late": "import os\n",
            "losses/_parts/__init__": "",
            "losses/_parts/deep": "from .beside import z\nfrom .._up import w\n",
            "losses/_parts/beside": "z = 1\n",
            "losses/_parts/unused": "",
            "losses/_up": "w = 1\n",
            "losses/other": "from ._unused import x\n",
            "losses/_unused": "x = 1\n",
        },
    )
    helpers = {f"losses/_{name}.py" for name in ("helper", "shared", "late", "up")}
    parts = {f"losses/_parts/{name}.py" for name in ("__init__", "deep", "beside")}
    assert closure(tmp_path, "losses/mine.py") == {"losses/mine.py"} | helpers | parts


def test_absolute_imports_of_what_lies_in_the_project_are_followed(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "plugins/losses/mine": "from plugins.losses._shared import SCALE\nimport helper\nimport torch\n",
            "plugins/losses/_shared": "import pipeline.core.files\n",
            "helper": "import json\n",
            "pipeline/core/files": "",
        },
    )
    found = {"plugins/losses/mine.py", "plugins/losses/_shared.py", "helper.py"}
    assert closure(tmp_path, "plugins/losses/mine.py") == found


def test_a_package_is_followed_within_its_own_folder(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "corpora/files/__init__": "from .reading import read\n",
            "corpora/files/reading": "from . import texts, NAME\nfrom ..shared import x\n",
            "corpora/files/texts": "",
            "corpora/files/unused": "",
            "corpora/shared": "from ..other import y\nfrom .files import read\n",
            "other": "y = 1\n",
            "corpora/files": "not python, and hidden by the package of this name",
        },
    )
    assert closure(tmp_path, "corpora/files/__init__.py") == {
        "corpora/files/__init__.py",
        "corpora/files/reading.py",
        "corpora/files/texts.py",
        "corpora/shared.py",
        "other.py",
    }


def test_no_other_file_is_followed(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "losses/mine": "import json, torch, pipeline.absolute\n"
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from ._types import T\n"
            "try:\n    from ._missing import x\nexcept ImportError:\n    x = 1\n"
            "from ........far import y\n",
            "pipeline/absolute": "",
            "losses/_types": "T = int\n",
            "losses/circle": "from . import circle, _round\n",
            "losses/_round": "from .circle import x\n",
        },
    )
    assert closure(tmp_path, "losses/mine.py") == {"losses/mine.py"}
    assert closure(tmp_path, "losses/circle.py") == {"losses/circle.py", "losses/_round.py"}


def test_only_what_type_checkers_read_is_left_out(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "mine": "import typing\n"
            "if typing.TYPE_CHECKING:\n    from . import a\nelse:\n    from . import b\n"
            "if not typing.TYPE_CHECKING:\n    from . import c\n",
            **dict.fromkeys("abc", ""),
        },
    )
    assert closure(tmp_path, "mine.py") == {"mine.py", "b.py", "c.py"}


def test_the_top_level_packages_of_absolute_imports(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "mine": "import json\nimport os.path as p, torch.nn.functional as F\n"
            "from numpy.random import Generator\n"
            "from ._helper import x\nfrom . import y\n"
            "def f():\n    import heavy\n    from deep.er import z\n"
            "class A:\n    import inside\n",
        },
    )
    found = top_level_imports(tmp_path / "mine.py")
    assert found == {"json", "os", "torch", "numpy", "heavy", "deep", "inside"}


# ── the project's own modules ─────────────────────────────────────────────────────────────────────


def test_the_closure_of_a_module_leaves_out_types_and_packages_without_code(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "pipeline/__init__": '"""Only a docstring."""\n',
            "pipeline/a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline import c\n"
            "def f():\n    from pipeline.b import x\n    import json\n",
            "pipeline/b": "import pipeline.d.e\nx = 1\n",
            "pipeline/c": "y = 1\n",
            "pipeline/d/__init__": "z = 1\n",
            "pipeline/d/e": "",
            "json": "",
        },
    )
    names = ("a", "b", "d/__init__", "d/e")
    assert import_closure("pipeline.a", tmp_path) == {Path(f"pipeline/{name}.py") for name in names}
