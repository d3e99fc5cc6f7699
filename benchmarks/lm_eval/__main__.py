"""python -m benchmarks.lm_eval: writes the held-out documents and scores artifacts/export with the harness."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.lm_eval.documents import write_documents
from pipeline.core.files import read_json

HERE = Path(__file__).parent


def main(root: Path) -> int:
    """Prints bits per byte by the harness and by the pipeline; returns 1 if they differ by 0.001 or more."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        print(
            f"error: {error}: install the harness with pip install -c constraints.txt -e '.[lm-eval]'",
            file=sys.stderr,
        )
        return 1
    first = write_documents(root / "artifacts" / "splits", root / "artifacts" / "lm_eval", context_length(root))
    tasks = [f"held_out_{side}" for side in first]
    evaluation = read_json(root / "metrics" / "evaluate.json", "run `dvc repro`")
    apart = []
    for side, task in zip(first, tasks, strict=True):
        results = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(root / "artifacts" / "export"), "prefix_token_id": first[side]},
            tasks=[task],
            task_manager=TaskManager(include_path=str(HERE), include_defaults=False),
            device="cpu",
            batch_size=16,
            bootstrap_iters=0,
        )
        theirs: float = results["results"][task]["bits_per_byte,none"]
        ours = evaluation[side]["bits_per_byte"]
        apart.append(abs(theirs - ours))
        print(f"{side:<5} bits per byte: {theirs:.5f} by lm-evaluation-harness, {ours:.5f} by the pipeline")
    return int(max(apart) >= 1e-3)


def context_length(root: Path) -> int:
    """The context length of the exported model, in tokens."""
    config: dict[str, Any] = json.loads((root / "artifacts" / "checkpoint" / "config.json").read_text())
    length: int = config["shape"]["context_length"]
    return length


if __name__ == "__main__":
    raise SystemExit(main(Path.cwd()))
