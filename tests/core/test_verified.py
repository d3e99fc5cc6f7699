"""The hashes of a large folder are checked once, as long as its files are the same ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core import verified
from pipeline.core.files import write_manifest
from pipeline.core.verified import folder_state, record_verified, verified_files

NAMES = frozenset({"a.bin", "b.bin", "manifest.json"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verified, "SMALLEST", 10)
    made = tmp_path / "folder"
    made.mkdir()
    for name in ("a.bin", "b.bin"):
        (made / name).write_bytes(b"content of a file")
    write_manifest(made)
    return made


def test_what_was_verified_is_known(folder: Path) -> None:
    assert not verified_files(folder)
    record_verified(folder, folder_state(folder))
    assert verified_files(folder) == NAMES
    renamed = folder.rename(folder.with_name("published"))  # as when a stage publishes
    assert verified_files(renamed) == NAMES


def test_what_changes_while_it_is_read_is_not_recorded(folder: Path) -> None:
    before = folder_state(folder)
    edited(folder)
    record_verified(folder, before)
    assert not verified_files(folder)


def replaced(folder: Path) -> None:
    shutil.copy2(folder / "a.bin", folder / "copy")  # the same content, size and times, in another inode
    os.replace(folder / "copy", folder / "a.bin")


def edited(folder: Path) -> None:
    with (folder / "a.bin").open("r+b") as file:
        file.write(b"X")


CHANGES: dict[str, Callable[[Path], None]] = {
    "edited in place": edited,
    "replaced": replaced,
    "touched": lambda folder: os.utime(folder / "a.bin"),
    "removed": lambda folder: (folder / "a.bin").unlink(),
    "another manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
    "a damaged record": lambda folder: Path(".resume/verified.json").write_text("[" * 9999),
    "a record of another type": lambda folder: Path(".resume/verified.json").write_text("[]"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_not_known(change: str, folder: Path) -> None:
    record_verified(folder, folder_state(folder))
    CHANGES[change](folder)
    assert not verified_files(folder)
    record_verified(folder, folder_state(folder))
    assert verified_files(folder)


def test_a_small_folder_is_not_recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "SMALLEST", 64 << 20)
    record_verified(folder, folder_state(folder))
    assert not verified_files(folder)
    assert not Path(".resume").exists()


def test_the_record_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "_MOST", 3)
    for number in range(5):
        (folder / "a.bin").write_bytes(b"content of a file" + bytes([number]))
        write_manifest(folder)
        record_verified(folder, folder_state(folder))
        assert verified_files(folder)
    assert Path(".resume/verified.json").read_text().count(":") == 3
