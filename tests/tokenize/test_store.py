"""The store of shards: nothing half-written, nothing damaged, and nothing that is in use removed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import Project
from sharding import contents, run_inline, with_low_limits

from pipeline.core.files import write_manifest
from pipeline.data.token_writer import TokenWriter
from pipeline.data.tokens import TokenFolder
from pipeline.tokenize.store import STEM, ShardRecord, TokenStore, remove_settings, settings_folders, write_record
from pipeline.tokenize.vocabulary import raw_bytes


def add(store: TokenStore, key: str, text: bytes = b"the river") -> ShardRecord:
    with store.adding(key) as folder:
        with TokenWriter(folder, STEM, raw_bytes()) as writer:
            writer.write(np.frombuffer(text, np.uint8).astype(np.uint32))
            writer.end_document("a.txt", len(text))
        return write_record(folder, writer, [{"replaced": 1}], blank=False)


def test_a_shard_is_found_and_linked_under_another_name(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens", "settings")
    record = add(store, "key")
    assert store.find("key") == record
    assert (record.tokens, record.documents, record.bytes, record.reports) == (9, 1, 9, [{"replaced": 1}])
    assert store.counts("key").sum() == 9
    (tmp_path / "out").mkdir()
    entries = store.link("key", tmp_path / "out", "tokens-00003-of-00007")
    assert sorted(entries) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "tokens-00003-of-00007.bin").stat().st_nlink == 2


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx.npy", "shard.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_shard_is_none(tmp_path: Path, name: str, damage: str) -> None:
    store = TokenStore(tmp_path, "settings")
    add(store, "key")
    path = tmp_path / "settings" / "key" / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-2] if damage == "cut" else data[:5] + bytes([data[5] ^ 1]) + data[6:])
    assert store.find("key") is None
    assert not store.has("key")
    add(store, "key")
    assert store.find("key") is not None


def test_after_an_error_there_is_no_shard_and_a_second_one_is_left_out(tmp_path: Path) -> None:
    store = TokenStore(tmp_path, "settings")

    def fail() -> None:
        with store.adding("key") as folder:
            (folder / "tokens.bin").write_bytes(b"half")
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    assert [path.name for path in store.folder.iterdir()] == ["lock"]
    first = add(store, "key")
    add(store, "key", b"another process was faster")
    assert store.find("key") == first
    assert sorted(path.name for path in store.folder.iterdir()) == ["key", "lock"]


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx.npy", "tokens.names.jsonl", "counts.npy", "shard.json"])
def test_a_shard_that_lacks_a_file_is_none(tmp_path: Path, name: str) -> None:
    store = TokenStore(tmp_path, "settings")
    add(store, "key")
    (store.folder / "key" / name).unlink()
    write_manifest(store.folder / "key")  # as where the folder was removed while it was written
    assert store.find("key") is None


def test_a_shard_cannot_be_added_where_renaming_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(source: Path, target: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied", str(target))

    monkeypatch.setattr("pipeline.tokenize.store.os.rename", rename)
    with pytest.raises(PermissionError):
        add(TokenStore(tmp_path, "settings"), "key")


def test_nothing_is_removed_while_a_shard_is_written(tmp_path: Path) -> None:
    """The worker of a cluster goes on when the run that asked it was interrupted."""
    store = TokenStore(tmp_path, "settings")
    with store.adding("key") as folder:
        with store.in_use():
            pass
        assert folder.is_dir()


def test_what_a_killed_process_left_is_removed_when_nobody_writes(tmp_path: Path) -> None:
    store = TokenStore(tmp_path, "settings")
    with store.in_use():
        left = store.folder / ".key.partial-1"
        left.mkdir()
        with store.in_use():
            pass
        assert left.exists()
    assert not left.exists()


def test_pruning_keeps_what_is_used_and_the_latest_settings(tmp_path: Path) -> None:
    for number in range(6):
        other = TokenStore(tmp_path, f"old{number}")
        with other.in_use():
            add(other, "key")
        os.utime(other.folder / "lock", (number, number))
    store = TokenStore(tmp_path, "new")
    with TokenStore(tmp_path, "old0").in_use(), store.in_use() as lock:
        os.utime(tmp_path / "old0" / "lock", (0, 0))
        for key in ("a", "b"):
            add(store, key)
        store.tokenizer_path("t").write_text("{}")
        store.tokenizer_path("u").write_text("{}")
        (store.folder / ".c.partial-1").mkdir()  # of a process that was killed
        with store.in_use():  # another run with the same settings
            store.prune(lock, ["a"], "t")
        assert store.has("b")
        store.prune(lock, ["a"], "t")
    assert sorted(path.name for path in store.folder.iterdir()) == ["a", "lock", "tokenizer-t.json"]
    assert [folder.name for folder in settings_folders(tmp_path)] == ["new", "old5", "old4", "old0"]
    assert remove_settings(tmp_path / "old0")
    assert not (tmp_path / "old0").exists()


def test_runs_and_clean_know_the_store(project: Project) -> None:
    assert project.succeed("runs").out == "there are no training checkpoints\n"
    store = TokenStore(project.root / ".resume" / "tokens", "settings")
    with store.in_use():
        add(store, "key")
        assert "kB of shards that tokenize has made" in project.succeed("runs").out
        assert "kept tokens/settings: a process is making shards" in project.succeed("clean", "tokens").out
        assert store.has("key")
    assert project.succeed("clean", "--keep", "1").out.startswith("removed the checkpoints of 0 runs")
    assert store.has("key")
    assert project.succeed("clean", "tokens").out.startswith("removed the shards of tokenize")
    assert not store.folder.exists()
    with store.in_use():
        add(store, "key")
    assert "removed the shards of tokenize" in project.succeed("clean").out
    assert not store.folder.exists()


def test_a_shard_that_is_damaged_or_changed_in_the_output_is_made_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    tokens = project.root / "artifacts" / "tokens"
    project.succeed("tokenize")
    before = contents(tokens)
    path = next(tokens.glob("tokens-00000-*.bin"))
    with path.open("r+b") as file:  # the same file as in the store
        file.write(b"\1\1")
    project.succeed("tokenize")
    assert contents(tokens) == before
    TokenFolder(tokens, "")
