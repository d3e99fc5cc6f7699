"""lm-evaluation-harness on the held-out text: its bits per byte are the pipeline's."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, Project

from benchmarks.lm_eval.documents import write_documents
from pipeline.data.batches import evaluation_windows
from pipeline.data.masked import MaskedIds
from pipeline.data.tokens import TokenFolder
from pipeline.model import load
from pipeline.model.scoring import score


def test_the_documents_add_up_to_the_text_without_its_ends(trained: Path, tmp_path: Path) -> None:
    """With any log-likelihood of a token: what is added and subtracted leaves the text's own."""
    splits = TokenFolder(trained / "artifacts" / "splits", "")
    first = write_documents(trained / "artifacts" / "splits", tmp_path, 16)
    ids, tokenizer = splits.ids("val"), splits.tokenizer
    assert first["val"] == int(ids[0])
    assert set(first) == {"val", "test"}
    documents = [json.loads(line) for line in (tmp_path / "val.jsonl").read_text().splitlines()]
    ends = (ids == tokenizer.end_of_text).sum()
    assert sum(each["sign"] == -1 for each in documents) == ends > 1
    assert sum(each["bytes"] for each in documents) == tokenizer.byte_lengths[ids[1:]].sum()

    model = load(trained / "artifacts" / "checkpoint", plugins=trained / "plugins").model
    scores = list(score(model, MaskedIds(ids), evaluation_windows(len(ids), 16, 16), 8))
    targets, nats = (np.concatenate([getattr(each, name) for each in scores]) for name in ("targets", "nats"))
    places = np.flatnonzero(targets == tokenizer.end_of_text)
    subtracted = sum(nats[place] for place in places)
    text = nats[tokenizer.byte_lengths[targets] > 0].sum()
    assert math.isclose(nats.sum() - subtracted, text)
    for place, document in zip(places, [each for each in documents if each["sign"] == -1], strict=True):
        window = ids[1 + place // 16 * 16 : place + 2]
        assert document["text"] == tokenizer.decode(window)


def test_its_bits_per_byte_are_the_pipelines(trained_project: Project) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed: pip install -c constraints.txt -e '.[lm-eval]'")
    trained_project.succeed("evaluate")
    trained_project.succeed("export")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.lm_eval"], cwd=trained_project.root, env=environment, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.findall(
        r"^(val|test) +bits per byte: ([\d.]+) by lm-evaluation-harness, ([\d.]+)", result.stdout, re.M
    )
    assert [side for side, _, _ in found] == ["val", "test"]
    metrics = json.loads((trained_project.root / "metrics" / "evaluate.json").read_text())
    for side, theirs, ours in found:
        assert float(ours) == pytest.approx(metrics[side]["bits_per_byte"], abs=1e-5)
        assert float(theirs) == pytest.approx(float(ours), abs=1e-3)
