"""What shipped plugins may import from this project: `pipeline.plugin`, exporters also what they share there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import REPOSITORY

PLUGINS = sorted((REPOSITORY / "plugins").rglob("*.py"))


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_a_plugin_imports_only_what_its_author_sees(path: Path) -> None:
    seen = {"pipeline.plugin"} | ({"pipeline.exporting"} if "exporters" in path.parts else set())
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.split(".")[0] in {"pipeline", "plugins", ""}:
                assert name in seen
