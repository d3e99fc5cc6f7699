"""The commands of the stages, whose help is the docstring of stage.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Project

from pipeline.command_line import stages

DOCSTRING = '"""Count the words.\n\nWrites artifacts/words.\n"""\n'
SOURCES = {
    "a docstring": DOCSTRING.encode(),
    "after comments": f"#!/usr/bin/env python\n\n# Words.\n{DOCSTRING}".encode(),
    "raw": b"r" + DOCSTRING.encode(),
    "other quotes": DOCSTRING.replace('"""', "'''").encode(),
    "a byte order mark": DOCSTRING.encode("utf-8-sig"),
    "another encoding": f"# coding: latin-1\n# caf\u00e9\n{DOCSTRING}".encode("latin-1"),
    "the line ends of Windows": DOCSTRING.replace("\n", "\r\n").encode(),
}
NONE = {"code": b"x = 'Count'\n", "nothing": b"", "no text": b"\xff\xfe", "an open string": b'"""Count'}


def command_of(source: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, str | None]:
    """The help of the stage with this source, and its short form."""
    (folder / "words").mkdir()
    (folder / "words" / "stage.py").write_bytes(source)
    monkeypatch.setattr(stages, "_PACKAGE", folder)
    assert stages.stage_names() == ["words"]
    command = stages.stage_command("words")
    return command.help, command.short_help


@pytest.mark.parametrize("kind", SOURCES)
def test_the_docstring_of_a_stage_is_the_help_of_its_command(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = command_of(SOURCES[kind], tmp_path, monkeypatch)
    assert found == ("Count the words.\n\nWrites artifacts/words.", "Count the words.")


@pytest.mark.parametrize("kind", NONE)
def test_a_stage_without_a_docstring_does_not_break_the_other_commands(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "words" in str(command_of(NONE[kind], tmp_path, monkeypatch))


@pytest.mark.parametrize("launcher", [{"RANK": "{}", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "{}"}, {}])
def test_of_several_ranks_the_first_one_says_what_dvc_does_not_record(
    launcher: dict[str, str], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.root / ".dvc").mkdir()
    said = []
    for rank in range(2):
        for name, value in launcher.items():
            monkeypatch.setenv(name, value.format(rank))
        said.append("dvc exp run -S split.seed=3" in project.run("split", "--set", "split.seed=3", tiny=False).out)
    assert said == [True, not launcher]
