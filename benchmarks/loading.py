"""The data loader: microseconds per batch compared with nanoGPT's, and its share of a training step."""

from __future__ import annotations

import ast
import atexit
import os
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.context import Context
from benchmarks.measure import ROOT, Side, Work
from benchmarks.ours import SHAPES
from benchmarks.results import Row

_BATCHES = 300
_TOKENS = 10_000_000


def run(context: Context) -> None:
    """Loads batches of shape M from ten million tokens. The share refers to a step of shape M, the fastest one."""
    shape = SHAPES["M"]
    settings = {"shape": shape, "tokens": _TOKENS}
    sides = [Side("ours", "benchmarks.loading:ours", settings)]
    code = context.peer("nanogpt", "nanoGPT's loader")
    if code:
        sides.append(Side("nanoGPT", "benchmarks.loading:nanogpt", {**settings, "code": str(code[0])}))
    done = context.compare("loader, shape M", sides, "batches per processor-second", {})

    step = Side("step", "benchmarks.ours:training", {"shape": shape, "threads": 1, "steps": 1})
    steps = context.take_turns([step])["step"]
    each = [1 / one.rate / other.processor for one, other in zip(done["ours"].rounds, steps.rounds, strict=True)]
    context.add(Row("the loader's share of a step, shape M", "", median(each), "share", rounds=each,
                    goal="the loader's share of a step"))  # fmt: skip


def _file(tokens: int, vocab_size: int) -> Path:
    """Writes random ids to a file that both sides read."""
    import numpy as np

    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    np.random.default_rng(1).integers(0, vocab_size, tokens).astype("<u2").tofile(Path(folder) / "train.bin")
    return Path(folder) / "train.bin"


def ours(shape: dict[str, int], tokens: int) -> tuple[Work, dict[str, Any]]:
    """Loads a batch as a training step does."""
    import numpy as np
    import torch

    from pipeline.data.batches import TrainingWindows, token_index
    from pipeline.data.masked import MaskedIds
    from pipeline.plugin.components import IGNORED
    from pipeline.plugin.registry import Registry

    ids = np.memmap(_file(tokens, shape["vocab_size"]), dtype="<u2", mode="r")
    sampler = Registry.load(ROOT / "plugins", ["batch_samplers"]).build("batch_samplers", "shuffled", {}, "")
    index = token_index(len(ids), shape["context_length"], True, sampler, ())
    data, size, place = TrainingWindows(MaskedIds(ids), index, sampler, 1), shape["batch_size"], [0]

    def work() -> float:
        for _ in range(_BATCHES):
            offsets = data.offsets(place[0], place[0] + size)
            _, targets = (torch.from_numpy(array) for array in data.batch(offsets))
            int((targets != IGNORED).sum())
            place[0] += size
        return float(_BATCHES)

    work()
    return work, {}


def nanogpt(shape: dict[str, int], tokens: int, code: str) -> tuple[Work, dict[str, Any]]:
    """get_batch of nanoGPT's train.py, extracted because importing the script would train."""
    import numpy as np
    import torch

    source = ast.parse((Path(code) / "train.py").read_text(encoding="utf-8"))
    wanted = [node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "get_batch"]
    names: dict[str, Any] = {
        "os": os, "np": np, "torch": torch, "device": "cpu", "device_type": "cpu",
        "data_dir": str(_file(tokens, shape["vocab_size"]).parent),
        "batch_size": shape["batch_size"], "block_size": shape["context_length"],
    }  # fmt: skip
    exec(compile(ast.Module(wanted, []), "train.py", "exec"), names)

    def work() -> float:
        for _ in range(_BATCHES):
            names["get_batch"]("train")
        return float(_BATCHES)

    work()
    return work, {}
