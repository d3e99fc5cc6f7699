"""The memory of split is bounded: 100 million documents, at 20 bytes each, need less than 2 GB."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from pipeline.core.paths import Paths
from pipeline.data.index import RECORD, index_path, name_hash, names_path
from pipeline.data.token_writer import shard_stem, smallest_dtype
from pipeline.data.tokens import finish_folder
from pipeline.params.reader import load_params
from pipeline.split import stage
from pipeline.tokenize.vocabulary import raw_bytes

TOKENIZER = raw_bytes()
MOST_BYTES = 20


def documents(folder: Path, count: int) -> None:
    """Writes tokens of `count` documents of a letter each; every fourth one is a duplicate."""
    folder.mkdir(parents=True)
    stem = shard_stem("tokens", 0, 1)
    ids = np.tile(np.array([97, TOKENIZER.end_of_text]), count)
    ids.astype(smallest_dtype(TOKENIZER.vocab_size)).tofile(folder / f"{stem}.bin")
    records = np.zeros(count, RECORD)
    numbers = np.arange(count)
    records["start"], records["tokens"], records["bytes"] = 2 * numbers, 2, 1
    records["name_hash"] = [name_hash(str(number)) for number in range(count)]
    records["digest"] = np.char.zfill((numbers - numbers % 4 % 3 % 2).astype("S16"), 16)
    records["split"] = np.where(numbers % 10 < 8, 1, numbers % 10 - 6)
    np.save(index_path(folder, stem), records)
    names_path(folder, stem).write_text("".join(json.dumps(str(number)) + "\n" for number in range(count)))
    files = {"tokens": {"tokens": 2 * count, "documents": count, "bytes": count, "shards": 1}}
    counts = {"tokens": np.bincount(ids, minlength=TOKENIZER.vocab_size)}
    finish_folder(folder, TOKENIZER, files, params={}, counts=counts)


FEW, MANY = (3_000, 13_000), (20_000, 200_000)
SEGMENTS, COPIED = 10, 1 << 30


@pytest.mark.parametrize(
    ("by", "sizes", "most_copied"),
    [
        ("document", FEW, SEGMENTS),
        ("predefined", FEW, SEGMENTS),
        ("position", FEW, SEGMENTS),
        pytest.param("document", FEW, COPIED, marks=pytest.mark.long),
        pytest.param("document", MANY, SEGMENTS, marks=pytest.mark.long),
    ],
)
def test_memory_per_document_is_bounded(
    by: str, sizes: tuple[int, int], most_copied: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "MOST_COPIED", most_copied)
    monkeypatch.setattr("pipeline.split.baseline._XZ_BYTES", 1000)  # which grow with a small text
    monkeypatch.setattr("pipeline.split.duplicates.MOST_LISTED", 10)
    monkeypatch.setattr("pipeline.data.index._RECORDS", 1 << 8)
    monkeypatch.setattr("pipeline.data.tokens._BLOCK", 1 << 10)
    monkeypatch.setattr("pipeline.split.segments._AT_ONCE", 1 << 10)
    settings = [f"split.by={by}", "split.val=0.1", "split.test=0.1", "split.duplicates=remove"]
    params = load_params(REPOSITORY / "params.yaml", settings)
    peaks = []
    for count in sizes:
        root = tmp_path / str(count)
        documents(root / "artifacts/tokens", count)
        gc.collect()
        tracemalloc.start()
        stage.run(params, Paths(root))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]) < MOST_BYTES
