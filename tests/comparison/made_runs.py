"""Synthetic runs with random scores, as files in a folder or as records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.comparison.runs import PairedScores
from pipeline.evaluate.breakdown import Breakdown, UnitScore
from pipeline.evaluate.tables import TaskItem, write_tables

PARAMS = {
    "split": {"seed": 2},
    "model": {"n_layers": 4},
    "train": {"seed": 1, "lr": 0.02},
}


def scored(seed: int, units: int = 40, shift: float = 0.0, size: int = 4) -> Breakdown:
    """The text is always the same; `seed` determines the loss of each document."""
    text, run = np.random.default_rng(0), np.random.default_rng(seed)
    tokens = text.integers(50, 500, units)
    loss = text.normal(4, 0.5, units) + run.normal(shift, 0.05, units)
    documents = [
        UnitScore(
            f"document {number}",
            int(count),
            float(count * nats),
            int(count) * size,
            float(count * nats),
            0,
        )
        for number, (count, nats) in enumerate(zip(tokens, loss, strict=True))
    ]
    return Breakdown(documents=documents, blocks=documents[:16], positions=[], frequencies=[])


def write_run(
    folder: Path,
    breakdown: Breakdown,
    params: dict[str, Any] | None = None,
    items: Sequence[TaskItem] = (),
    **about: Any,
) -> None:
    """Writes metrics/ and reports/ of a run with equal scores on val and test, and the items of tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    nats, tokens = (sum(each[column] for each in breakdown.documents) for column in (2, 1))
    facts: dict[str, Any] = {
        "step": 10, "weights": "best", "context_length": 256, "stride": 256, "stride_share": 1.0,
        "tokenizer": {"name": "bpe", "fingerprint": "f"},
        "sides": {side: {"tokens": f"{side} tokens", "text": f"{side} text"} for side in ("val", "test")},
    }  # fmt: skip
    facts |= {"params": PARAMS if params is None else params, **about}
    if items:
        facts["task_items"] = len(items)
    (folder / "metrics").mkdir(exist_ok=True)
    (folder / "reports").mkdir(exist_ok=True)
    metrics = {side: {"loss": nats / tokens} for side in facts["sides"]}
    (folder / "metrics" / "evaluate.json").write_text(json.dumps(metrics))
    write_tables(dict.fromkeys(facts["sides"], breakdown), items, facts, folder / "reports")


def simulated(
    generator: np.random.Generator, seeds: tuple[int, int], units: int, between: float, within: float,
    recipe: float = 0.0, effect: float = 0.0,
) -> PairedScores:  # fmt: skip
    """Two recipes' runs on the same `units` documents.

    Args:
        generator: The random generator.
        seeds: The runs of each recipe.
        units: The documents.
        between: How a run's loss varies with its seed, on all documents alike.
        within: How it varies with its seed from document to document.
        recipe: How the recipes' difference varies from document to document.
        effect: How much worse the second recipe is.
    """
    spread = 1 if units >= 30 else 0.05  # fewer are never documents, but blocks, which are about equally long
    sizes = np.round(generator.lognormal(6, spread, units)) + 1
    text = 4 + generator.normal(0, 0.5, units)
    rows = []
    for group, count in enumerate(seeds):
        losses = text + group * effect + generator.normal(0, recipe, units) / np.sqrt(2)
        rows += [losses + generator.normal(0, between) + generator.normal(0, within, units) for _ in range(count)]
    return PairedScores(
        "documents", [str(each) for each in range(units)], np.array(rows) * sizes, np.tile(sizes, (len(rows), 1))
    )
