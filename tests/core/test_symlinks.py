"""Links to folders below data/: their files are recorded beside them, and what is not recorded is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from pipeline.core.symlinks import check_symlinks, record_symlinks


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "disk" / "a.txt").write_text("the river")
    (tmp_path / "disk" / "deep" / "b.txt").write_text("runs")
    return tmp_path / "disk"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "raw").mkdir(parents=True)
    return tmp_path / "data"


def test_folders_without_links_need_nothing(data: Path) -> None:
    (data / "raw" / "c.txt").write_text("to a sea")
    (data / "raw" / "file.txt").symlink_to("c.txt")  # DVC follows links to files
    check_symlinks(data)
    assert not list(record_symlinks(data))
    check_symlinks(data.parent / "nothing")


@pytest.mark.parametrize("place", ["raw", "raw/linked", "raw/two/linked", "weights"])
def test_a_change_behind_a_link_changes_the_manifest_beside_it(place: str, disk: Path, data: Path) -> None:
    link = data / place
    link.parent.mkdir(exist_ok=True)
    if link.is_dir():
        link.rmdir()
    link.symlink_to(disk)
    with pytest.raises(DataError, match=f"data/{place} .* not recorded: run `pipeline lock`"):
        check_symlinks(data)
    manifest = link.with_name(f".{link.name}.manifest.json")
    for change in (
        lambda: None,
        lambda: (disk / "deep" / "b.txt").write_text("other"),
        lambda: os.utime(disk / "a.txt", ns=(1, 1)),
        lambda: (disk / "a.txt").rename(disk / "deep" / "a.txt"),
        lambda: (disk / "loop").symlink_to(disk),
        lambda: (disk / "gone").symlink_to("nowhere"),
    ):
        change()
        before = manifest.read_text() if manifest.exists() else ""
        said = list(record_symlinks(data))
        check_symlinks(data)
        assert not list(record_symlinks(data))
        assert bool(said) == (manifest.read_text() != before)
    files = json.loads(manifest.read_text())
    assert files["deep/b.txt"][0] == 5
    assert sorted(files) == ["deep/a.txt", "deep/b.txt", "gone"]
    (disk / "deep" / "b.txt").unlink()
    with pytest.raises(DataError, match=f"data/{place} .* have changed .*deep/b.txt.*: run `pipeline lock`"):
        check_symlinks(data)
    check_symlinks(data, unused=link)


def test_a_missing_link_is_refused_until_its_manifest_is_removed(disk: Path, data: Path) -> None:
    (data / "raw" / "linked").symlink_to(disk)
    list(record_symlinks(data))
    (data / "raw" / "linked").unlink()
    with pytest.raises(DataError, match=r"data/raw/linked .*pipeline lock"):
        check_symlinks(data)
    assert "removed" in "".join(record_symlinks(data))
    check_symlinks(data)
