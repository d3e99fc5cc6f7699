"""Compares recipes with real training: tiny models on tinyshakespeare, five seeds each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Project

from pipeline.core.paths import Paths
from pipeline.evaluate import stage as evaluate
from pipeline.params.reader import load_params
from pipeline.split import stage as split
from pipeline.tokenize import stage as tokenize
from pipeline.train import stage as train

SMALL = (
    "tokenize.corpus.name=files",
    "tokenize.tokenizer.name=characters",
    "split.by=position",
    "model.context_length=64",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.emb_dim=64",
    "model.dropout=0",
    "train.budget.amount=60",
    "train.schedule.warmup_steps=6",
    "train.evaluation.every=60",
    "train.eval_callbacks.use=[]",
    "evaluate.batch_size=64",
    "evaluate.generation.prompts=[]",
    "runtime.threads=1",
)


def train_one(root: Path, folder: Path, *settings: str) -> None:
    """Trains on the splits in `root` and writes metrics/ and reports/ into `folder`."""
    params = load_params(REPOSITORY / "params.yaml", [*SMALL, *settings])
    train.run(params, Paths(root))
    evaluate.run(params, Paths(root))
    for name in ("metrics", "reports"):
        shutil.copytree(root / name, folder / name)


@pytest.mark.long
def test_five_seeds_of_a_recipe_equal_five_others_and_a_lower_rate_is_found(
    project: Project, test_data: Path
) -> None:
    root = project.root
    shutil.rmtree(root / "data" / "raw")
    (root / "data" / "raw").mkdir()
    shutil.copy(test_data / "tinyshakespeare.txt", root / "data" / "raw")
    params = load_params(REPOSITORY / "params.yaml", SMALL)
    tokenize.run(params, Paths(root))
    split.run(params, Paths(root))
    for seed in range(1, 11):
        train_one(root, root / f"plain{seed}", f"train.seed={seed}")
    for seed in range(1, 6):
        train_one(root, root / f"slow{seed}", f"train.seed={seed}", "train.optimizer.muon.lr=0.01")

    def compare(first: list[str], second: list[str]) -> Any:
        return json.loads(project.succeed("compare", *first, "--against", *second, "--json").out)

    plain = [f"plain{seed}" for seed in range(1, 11)]
    same = compare(plain[:5], plain[5:])
    other = compare(plain[:5], [f"slow{seed}" for seed in range(1, 6)])
    assert not same["val"]["differ"]
    assert not same["test"]["differ"]
    assert other["val"]["differ"]
    assert other["val"]["difference"] > 0
    # Two seeds of one recipe are two checkpoints, and of these it is known which is better.
    assert "is better by" in project.succeed("compare", plain[0], plain[1]).out
