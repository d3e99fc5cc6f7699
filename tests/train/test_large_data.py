"""Training starts without reading the training text: 100 billion tokens in a sparse file, on any machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, Project

from pipeline.core.files import sha256, write_json
from pipeline.core.verified import folder_state, record_verified
from pipeline.data.index import IndexEntry, IndexWriter
from pipeline.data.segments import SEGMENTS
from pipeline.data.tokens import TokenFolder

TOKENS = 100_000_000_000
SHARD = "tokens-00000-of-00001"
STARTS = """
import json, resource, sys
from pathlib import Path
import torch
from pipeline.data.tokens import TokenFolder
from pipeline.params.reader import load_params
from pipeline.train.components import Components
from pipeline.train.data import TrainingData

def used():
    read = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"]
    return int(read), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

root = Path.cwd()
params = load_params(root / "params.yaml", sys.argv[1:])
components = Components.load(params, root / "plugins")
before = used()
splits = TokenFolder(root / "artifacts/splits", "")
data = TrainingData.read(params, splits, components.batch_sampler)
offsets = data.windows.offsets(10**6, 10**6 + 4)
x, y = data.batch(offsets)
assert len(data.ids["train"]) == splits.meta["files"]["train"]["tokens"] > 9 * 10**10
print(json.dumps([after - was for after, was in zip(used(), before)]))
"""


def sparse(path: Path, size: int) -> None:
    """Makes a file of zeros that occupies no space, or skips the test."""
    path.unlink()
    with path.open("wb") as file:
        try:
            file.truncate(size)
        except OSError:
            pytest.skip(f"the file system of {path.parent} has no files of {size:,} bytes")
    if path.stat().st_blocks * 512 > size // 1000:
        pytest.skip(f"the file system of {path.parent} has no sparse files")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the bytes that a process reads")
def test_training_starts_without_reading_the_training_text(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.split.stage.MOST_COPIED", 10)
    project.succeed("tokenize", "--set", "tokenize.tokenizer.name=bytes")
    project.succeed("split", "--set", "tokenize.tokenizer.name=bytes")
    tokens, splits = project.root / "artifacts/tokens", project.root / "artifacts/splits"

    sparse(tokens / f"{SHARD}.bin", 2 * TOKENS)
    with IndexWriter(tokens, SHARD) as index:
        for number in range(10):
            index.add(IndexEntry(str(number), number * TOKENS // 10, TOKENS // 10, TOKENS // 10), False)
    sized(tokens, "tokens", TOKENS, 10)
    held_out = TOKENS // 100
    table = np.array([[0, TOKENS // 2, TOKENS - held_out], [held_out // 2, TOKENS // 2 + held_out, 0]])
    np.save(splits / SEGMENTS, table)
    meta = json.loads((splits / "meta.json").read_text())
    meta["segments_of"]["digest"] = TokenFolder(tokens, "").digest
    write_json(splits / "meta.json", meta)
    sized(splits, "train", TOKENS - held_out, 10)

    command = [sys.executable, "-c", STARTS, "tokenize.tokenizer.name=bytes", "model.context_length=256"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=project.root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    read, memory = json.loads(result.stdout)
    assert read < 10 << 20
    assert memory < 100 << 20


def sized(folder: Path, name: str, tokens: int, documents: int) -> None:
    """Sets the size of a file in meta.json, and makes the manifest, as if the large file had been hashed."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["files"][name] |= {"tokens": tokens, "documents": documents}
    write_json(folder / "meta.json", meta)
    manifest = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": sha256(path) if path.stat().st_size < TOKENS else "0" * 64,
        }
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    write_json(folder / "manifest.json", {"files": manifest})
    record_verified(folder, folder_state(folder))
