"""tokenize.store: the ids of a large corpus on another disk, and only their index in artifacts/tokens."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Project
from sharding import contents, made_up, run_inline, with_low_limits

from pipeline.core.errors import DataError
from pipeline.data.tokens import TokenFolder

BYTES = ("--set", "tokenize.tokenizer.name=bytes")
FIX = "run `dvc repro`"


@pytest.fixture
def large(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a large corpus."""
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    generator = random.Random(1)
    for path in (project.root / "data" / "raw").iterdir():
        path.write_text(made_up(generator, 400))
    return project


def tokenize(project: Project, *arguments: str, store: str = "big/disk") -> Path:
    """Tokenizes; returns the folder of the store."""
    project.succeed("tokenize", *BYTES, "--set", f"tokenize.store={store}", *arguments)
    return project.root / store


@pytest.mark.parametrize("store", ["big/disk", "/ROOT/disk"])
def test_the_tokens_are_the_same(large: Project, store: str) -> None:
    tokens = large.root / "artifacts" / "tokens"
    large.succeed("tokenize", *BYTES)
    here, opened = contents(tokens), TokenFolder(tokens, FIX)
    ids, digest = np.asarray(opened.ids("tokens")), opened.digest
    shutil.rmtree(large.root / ".resume")

    folder = tokenize(large, store=store.replace("/ROOT", str(large.root.parent)))
    there, opened = contents(tokens), TokenFolder(tokens, FIX)
    assert sum(path.suffix == ".bin" for path in folder.rglob("*")) > 5
    assert not (large.root / ".resume" / "tokens").exists()
    assert there.keys() == {name for name in here if not name.endswith(".bin")}
    assert all(there[name] == here[name] for name in there if name not in ("manifest.json", "meta.json"))
    assert opened.digest == digest
    assert np.array_equal(opened.ids("tokens"), ids)
    assert np.array_equal(np.concatenate(list(opened.blocks("tokens", 0, len(ids)))), ids)


def test_the_stages_read_the_store(large: Project) -> None:
    large.succeed("tokenize", *BYTES)
    large.succeed("split")
    splits = contents(large.root / "artifacts" / "splits")
    tokenize(large)
    large.succeed("split")
    assert contents(large.root / "artifacts" / "splits")["train.bin"] == splits["train.bin"]


@pytest.mark.parametrize("damage", ["missing", "shorter", "other"])
def test_a_shard_that_is_missing_or_damaged_is_named_and_made_again(damage: str, large: Project) -> None:
    store, tokens = tokenize(large), large.root / "artifacts" / "tokens"
    before = contents(tokens)
    path = sorted(store.rglob("*.bin"))[3]
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-2] if damage == "shorter" else b"\1" + data[1:])
    with pytest.raises(DataError, match=f"{path} [^\n]*: run `pipeline tokenize` again, which makes only"):
        TokenFolder(tokens, FIX)
    result = large.run("split")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert str(path) in result.err
    tokenize(large)
    assert path.read_bytes() == data
    assert contents(tokens) == before


def test_the_store_is_hashed_once(large: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    store, tokens = tokenize(large), large.root / "artifacts" / "tokens"
    monkeypatch.setattr("pipeline.core.verified.SMALLEST", 1)
    TokenFolder(tokens, FIX)
    monkeypatch.setattr("pipeline.core.files.sha256", lambda path, read: "not to be read")
    TokenFolder(tokens, FIX)
    path = sorted(store.rglob("*.bin"))[3]
    path.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="is damaged"):
        TokenFolder(tokens, FIX)
    TokenFolder(tokens, FIX, hashes=False)


def test_tokens_of_other_settings_and_texts_stay(large: Project) -> None:
    store, tokens = tokenize(large), large.root / "artifacts" / "tokens"
    before = set(store.rglob("*.bin"))
    old = shutil.copytree(tokens, tokens.with_name("old"))
    (large.root / "data" / "raw" / "text-00.txt").write_text("another text\n")
    tokenize(large)
    tokenize(large, "--set", "tokenize.end_of_text=false")
    assert before < set(store.rglob("*.bin"))
    TokenFolder(old, FIX)


def test_an_experiment_in_a_copy_uses_the_store_of_the_project(
    large: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(large)
    copy = shutil.copytree(large.root / "artifacts", large.root.parent / "copy" / "artifacts")
    with pytest.raises(DataError, match=r"copy/big/disk/.* is missing"):
        TokenFolder(copy / "tokens", FIX)
    monkeypatch.setenv("DVC_ROOT", str(large.root))
    TokenFolder(copy / "tokens", FIX)


def test_a_store_is_a_folder(project: Project) -> None:
    result = project.run("tokenize", "--set", "tokenize.store=s3://bucket/tokens")
    assert result.code == 1
    assert "mount it" in result.err


def test_the_manifest_of_a_plain_folder_has_no_paths(project: Project) -> None:
    project.succeed("tokenize", *BYTES)
    manifest = json.loads((project.root / "artifacts" / "tokens" / "manifest.json").read_text())
    assert all(entry.keys() == {"bytes", "sha256"} for entry in manifest["files"].values())
