"""The cost of `model.document_mask` on a CPU: processor time of training steps on documents of about 100 tokens.

Three sides take turns in one process: no mask; the mask, with the whole product of queries and keys; the mask, a
block of queries at a time, as it is used. Run `python -m benchmarks.masks`.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.measure import ROOT

if TYPE_CHECKING:
    from pipeline.train.run import TrainingRun

_STEPS = 15
_VOCABULARY = 4096
_BATCHES = {256: 8, 1024: 2}
"""Windows in a batch by context length."""


def prepared(context_length: int, precision: str, mask: bool, compiled: bool) -> TrainingRun:
    """A run of the default model on documents of 50 to 150 random tokens."""
    import numpy as np

    from benchmarks.ours import tokenizer
    from pipeline.data.index import IndexEntry
    from pipeline.data.masked import MaskedIds
    from pipeline.distributed.ranks import Ranks
    from pipeline.params.reader import load_params
    from pipeline.train.checkpoint_store import CheckpointStore
    from pipeline.train.components import Components
    from pipeline.train.data import TrainingData
    from pipeline.train.length import Length
    from pipeline.train.phases import Phase
    from pipeline.train.run import TrainingRun
    from pipeline.train.runtime_config import resolve_runtime_config

    settings = {
        "model.context_length": context_length,
        "model.document_mask": mask,
        "train.pack_documents": mask,
        "train.batch_size": _BATCHES[context_length],
        "train.micro_batch_size": _BATCHES[context_length],
        "train.precision": precision,
        "train.eval_callbacks.use": "[]",
        "train.log_every": 0,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "runtime.compile": compiled,
    }
    params = load_params(ROOT / "params.yaml", [f"{name}={str(value).lower()}" for name, value in settings.items()])
    random = np.random.default_rng(1)
    sizes = random.integers(50, 151, 2000)
    ends = sizes.cumsum()
    text = random.integers(0, _VOCABULARY - 1, ends[-1]).astype("<u2")
    text[ends - 1] = _VOCABULARY - 1
    documents = [IndexEntry("", int(end - size), int(size), 0) for size, end in zip(sizes, ends, strict=True)]
    components = Components.load(params, ROOT / "plugins")
    ids, indexes = {"train": MaskedIds(text), "val": MaskedIds(text)}, {"train": documents, "val": documents}
    data = TrainingData.build(params, tokenizer(_VOCABULARY), ids, components.batch_sampler, indexes)
    length = Length(params.train.batch_size, (1 << 40,))
    phase = Phase(length, lambda step: 1.0, {}, CheckpointStore(Path("unused"), "unused"))
    config = resolve_runtime_config(params, Ranks(), {}, float("inf"))
    run = TrainingRun.build(params, components, data, phase, config)
    run.model.train()
    return run


def main() -> None:
    """Measures and prints a row of a Markdown table for each context, precision and compilation."""
    from pipeline.model import attention
    from pipeline.train.loop import train_step
    from pipeline.train.state import TrainState

    print("| context | precision | compiled | no mask | whole product | by blocks |\n|---|---|---|---|---|---|")
    for context_length in _BATCHES:
        for precision, compiled in (("fp32", False), ("bf16", False), ("bf16", True)):
            without, masked = (prepared(context_length, precision, mask, compiled) for mask in (False, True))
            sides = [(without, attention.BLOCK), (masked, context_length), (masked, attention.BLOCK)]
            states = [TrainState() for _ in sides]
            seconds: list[list[float]] = [[] for _ in sides]
            for step in range(_STEPS + 2):
                for (run, block), state, taken in zip(sides, states, seconds, strict=True):
                    attention.BLOCK, kept = block, attention.BLOCK
                    began = time.process_time()
                    train_step(run, state)
                    if step > 1:
                        taken.append(time.process_time() - began)
                    attention.BLOCK = kept
            values = " | ".join(f"{1000 * median(each):.0f} ms" for each in seconds)
            print(f"| {context_length} | {precision} | {'yes' if compiled else 'no'} | {values} |", flush=True)


if __name__ == "__main__":
    main()
