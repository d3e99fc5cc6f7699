"""A large corpus below a URL: its tokens are those of the same files in data/raw, also if objects are divided."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from conftest import REPOSITORY, Project
from pyarrow import parquet
from sharding import SHARD, made_up, run_inline, with_low_limits

from pipeline.data.tokens import TokenFolder
from pipeline.plugin import CorpusSource
from pipeline.plugin.registry import Registry

pytest.importorskip("fsspec", reason="the extra remote is not installed")
Registry.load(REPOSITORY / "plugins", ["corpora"])
FETCHING = sys.modules["plugins.corpora.files.fetching"]
BYTES = ("--set", "tokenize.tokenizer.name=bytes")


def write_texts(raw: Path) -> None:
    generator = random.Random(3)
    (raw / "b.txt").write_text(made_up(generator, 4000))
    texts = [made_up(generator, generator.randrange(1, 40)) for _ in range(300)]
    (raw / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    parquet.write_table(arrow.table({"text": texts}), raw / "d.parquet", row_group_size=50)
    (raw / "e.html").write_text("<p>" + made_up(generator, 2000))


def documents(project: Project) -> list[tuple[Any, ...]]:
    folder = TokenFolder(project.root / "artifacts" / "tokens", "")
    ids = np.asarray(folder.ids("tokens"))
    return [
        (each.name, each.split, each.bytes, ids[each.start : each.end].tobytes())
        for each in folder.documents("tokens")
    ]


def moved_away(project: Project, folder: Path) -> Path:
    """Moves the texts out of data/raw, to where `url` says then; returns where."""
    mount = (project.root / "data" / "raw").rename(folder / "mount")
    params = project.root / "params.yaml"
    text = params.read_text().replace("name: python_docs", "name: files", 1)
    params.write_text(text.replace('url: ""', f"url: file://{mount}", 1))
    return mount


def test_the_tokens_are_those_of_local_files(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = project.root / "data" / "raw"
    write_texts(raw)
    every = (*BYTES, "--set", 'tokenize.corpus.files.include=["**"]')
    project.succeed("tokenize", *every)
    whole = documents(project)

    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    monkeypatch.setattr(FETCHING, "_DIVIDED", 2 * SHARD)
    monkeypatch.setattr(FETCHING, "_BLOCK", 1000)
    moved_away(project, tmp_path)
    project.succeed("lock")
    divided: list[str] = []
    sample = FETCHING._fill_footer
    monkeypatch.setattr(
        FETCHING,
        "_fill_footer",
        lambda url, source, local: (divided.append(source.name), sample(url, source, local)),
    )
    project.succeed("tokenize", *every)
    assert {"b.txt", "c.jsonl", "d.parquet", "b.txt@0"} <= set(divided)
    assert documents(project) == whole
    assert len(list((project.root / "artifacts" / "tokens").glob("*.bin"))) > 12


def test_only_what_changed_is_fetched(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    mount = moved_away(project, tmp_path)
    project.succeed("lock")
    project.succeed("tokenize", *BYTES)
    (mount / "text-05.txt").write_text("another text\n")
    project.succeed("lock")
    fetched: list[str] = []
    check = FETCHING.check_object

    def checked(url: str, source: CorpusSource) -> None:
        fetched.append(source.name)
        check(url, source)

    monkeypatch.setattr(FETCHING, "check_object", checked)
    project.succeed("tokenize", *BYTES)
    assert "text-05.txt" in fetched
    assert len(fetched) < 6


def test_objects_are_compared_with_the_list_also_where_shards_are_kept(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    mount = moved_away(project, tmp_path)
    project.succeed("lock")
    project.succeed("tokenize", *BYTES)
    (mount / "zz.txt").write_text("a new one")
    told = project.succeed("tokenize", *BYTES).out
    assert " 0 to make" in told
    assert f"note: data/remote.jsonl lacks 1 of the objects below file://{mount}: run `pipeline lock`" in told
    changed = min(mount.glob("*.txt"))
    changed.write_text("the river")
    for command in ("tokenize", "check"):
        result = project.run(command, *BYTES)
        assert result.code == 1
        assert f"{changed.name} has changed since data/remote.jsonl was written" in result.out + result.err
