"""Above a number of tokens, train is a list of segments: the same ids, documents, batches and losses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project

from pipeline.core.errors import DataError
from pipeline.core.files import write_manifest
from pipeline.data.tokens import TokenFolder

BY = {
    "document": ("split.by=document",),
    "position": ("split.by=position", "split.unit=tokens"),
    "characters": ("split.by=position", "split.unit=characters"),
}
TABLE = "train.segments.npy"


def split(project: Project, *settings: str) -> TokenFolder:
    project.succeed("split", *(part for setting in settings for part in ("--set", setting)))
    return TokenFolder(project.root / "artifacts/splits", "split again")


def both_ways(project: Project, monkeypatch: pytest.MonkeyPatch, *settings: str) -> tuple[TokenFolder, TokenFolder]:
    """The splits with train.bin, and with segments."""
    project.succeed("tokenize")
    split(project, *settings)
    shutil.copytree(project.root / "artifacts/splits", project.root / "artifacts/copied")
    monkeypatch.setattr("pipeline.split.stage.MOST_COPIED", 10)
    return TokenFolder(project.root / "artifacts/copied", ""), split(project, *settings)


@pytest.mark.parametrize("by", ["document", "position"])
def test_segments_hold_what_train_bin_holds(by: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, segments = both_ways(project, monkeypatch, *BY[by])
    assert (copied.folder / "train.bin").is_file()
    assert not (segments.folder / "train.bin").exists()
    assert segments.meta["files"] == copied.meta["files"]
    assert segments.meta["xz_bits_per_byte"] == copied.meta["xz_bits_per_byte"]
    for name in copied.names:
        expected, found = copied.ids(name), segments.ids(name)
        assert len(found) == len(expected)
        assert np.asarray(found).tolist() == np.asarray(expected).tolist()
        assert [(each.name, each.start, each.tokens) for each in segments.documents(name)] == [
            (each.name, each.start, each.tokens) for each in copied.documents(name)
        ]
    assert segments.counts("train").tolist() == copied.counts("train").tolist()


def test_a_cut_between_characters_ends_the_segments_before_the_token_at_the_cut(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, segments = both_ways(project, monkeypatch, *BY["characters"])
    decode = segments.tokenizer.decode_bytes
    whole, found = decode(copied.ids("train")), decode(segments.ids("train"))
    assert whole.startswith(found)
    assert len(whole) - len(found) < max(map(len, segments.tokenizer.token_bytes))
    assert segments.counts("train").sum() == len(segments.ids("train"))
    assert (segments.folder / "val.bin").read_bytes() == (copied.folder / "val.bin").read_bytes()


def test_removed_duplicates_are_in_no_segment(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sorted((project.root / "data/raw").iterdir())
    for text in texts:
        shutil.copy(text, text.with_name(f"copy-{text.name}"))
    copied, segments = both_ways(project, monkeypatch, "split.duplicates=remove")
    assert copied.meta["duplicates_found"] > 0
    assert np.asarray(segments.ids("train")).tolist() == np.asarray(copied.ids("train")).tolist()
    assert segments.counts("train").tolist() == copied.counts("train").tolist()


@pytest.mark.parametrize("sampler", ["shuffled", "weighted"])
def test_training_on_segments_gives_the_same_numbers(
    sampler: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--set", f"train.batch_sampler.name={sampler}"]
    both_ways(project, monkeypatch, *BY["document"])
    segmented = project.root / "artifacts/splits"
    results = []
    for folder in ("copied", "segments"):
        if folder == "copied":
            segmented.rename(project.root / "artifacts/segments")
            (project.root / "artifacts/copied").rename(segmented)
        else:
            shutil.rmtree(segmented)
            (project.root / "artifacts/segments").rename(segmented)
        project.succeed("train", *settings)
        if sampler == "shuffled":
            project.succeed("evaluate")
        results.append(
            [
                (project.root / "metrics" / name).read_bytes()
                for name in ("train.json", "history.tsv", "steps.tsv", "evaluate.json")
                if (project.root / "metrics" / name).exists()
            ]
        )
    assert results[0] == results[1]
    assert json.loads(results[0][0])["val"]["loss"] > 0


def table(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Changes the table of segments."""
    return lambda folder: np.save(folder / TABLE, change(np.load(folder / TABLE)), allow_pickle=True)


def shifted(row: int, column: int, by: int) -> Callable[[Path], None]:
    def change(array: Any) -> Any:
        array[row, column] += by
        return array

    return table(change)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": lambda folder: (folder / TABLE).unlink(),
    "empty": lambda folder: (folder / TABLE).write_bytes(b""),
    "truncated": lambda folder: (folder / TABLE).write_bytes((folder / TABLE).read_bytes()[:-1]),
    "an open bracket": lambda folder: (folder / TABLE).write_bytes(
        (folder / TABLE).read_bytes().replace(b"}", b" ")
    ),
    "other type": table(lambda array: array.astype(float)),
    "objects": table(lambda array: np.array([{}])),
    "one row": table(lambda array: array[:1]),
    "no segment": table(lambda array: array[:, :1]),
    "no beginning": shifted(0, 0, 1),
    "another number of tokens": shifted(0, -1, 1),
    "overlapping": shifted(1, 1, -10_000),
    "negative": shifted(1, 0, -10_000),
    "behind the end": shifted(1, -2, 10_000),
    "not ascending": shifted(0, 1, 10_000),
}


def test_damaged_segments_are_one_line(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.split.stage.MOST_COPIED", 10)
    monkeypatch.setattr("pipeline.data.segments._AT_ONCE", 2)
    project.succeed("tokenize")
    folder = split(project).folder
    content = (folder / TABLE).read_bytes()
    for change in DAMAGE.values():
        change(folder)
        write_manifest(folder)
        with pytest.raises(DataError, match=rf"{re.escape(TABLE)} is (damaged|missing).*split again$") as error:
            TokenFolder(folder, "split again")
        assert "\n" not in str(error.value)
        (folder / TABLE).write_bytes(content)
    write_manifest(folder)
    TokenFolder(folder, "split again")


def test_other_tokens_than_those_that_were_split_are_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.split.stage.MOST_COPIED", 10)
    project.succeed("tokenize")
    split(project)
    (project.root / "data/raw/text-00.txt").write_text("another text")
    project.succeed("tokenize")
    result = project.run("train")
    assert result.code == 1
    assert "artifacts/tokens is not what" in result.err
    assert "pipeline split" in result.err
    shutil.rmtree(project.root / "artifacts/tokens")
    assert "artifacts/tokens is missing" in project.run("train").err
