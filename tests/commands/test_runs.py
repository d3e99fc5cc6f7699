"""The list of training runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.commands.runs import table


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ((True, False), {"shift_windows true", "shift_windows false"}),
        (("a", "a\nb"), {"shift_windows a", 'shift_windows "a\\nb"'}),
    ],
)
def test_values_take_one_line_as_in_params_yaml(
    tmp_path: Path, values: tuple[object, object], cells: set[str]
) -> None:
    for number, value in enumerate(values):
        (tmp_path / f"run{number}").mkdir()
        identity = {"params": {"train": {"shift_windows": value}}}
        (tmp_path / f"run{number}" / "run.json").write_text(json.dumps(identity))
    lines = list(table(tmp_path))
    assert {line[line.index("shift") :] for line in lines if "shift" in line} == cells
