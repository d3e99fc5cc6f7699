"""Saving a training checkpoint, compared with torch.save, safetensors and writing the raw bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from benchmarks.context import Context
from benchmarks.measure import Side, Work
from benchmarks.results import Row

_PARAMETERS = 25_000_000


def run(context: Context) -> None:
    """A model of 25 million parameters with two moments, 300 MB; each write ends with fsync."""
    count = _PARAMETERS // 5 if context.quick else _PARAMETERS
    settings = {"count": count, "folder": str(context.folder)}
    sides = [
        Side("ours", "benchmarks.saving:ours", settings),
        Side("torch.save", "benchmarks.saving:plain", {**settings, "way": "torch"}),
        Side("safetensors", "benchmarks.saving:plain", {**settings, "way": "safetensors"}),
        Side("raw bytes", "benchmarks.saving:plain", {**settings, "way": "raw"}),
    ]
    done = context.compare("saving a state", sides, "MB per processor-second", {})
    size = done["ours"].rounds[0].work
    copying = done["ours"].facts["copying"]
    context.add(Row("training stands still while a state is copied", "", copying, "seconds",
                    note=f"for {size:,.0f} MB; the write itself runs beside the training"))  # fmt: skip


def _state(count: int) -> dict[str, Any]:
    """Weights and AdamW's moments in about fifty tensors, as in a checkpoint."""
    import torch

    generator = torch.Generator().manual_seed(1)
    weights = {f"layer.{number}": torch.randn(count // 50, generator=generator) for number in range(50)}
    moments = {
        number: {"step": torch.tensor(1.0), "exp_avg": each.clone(), "exp_avg_sq": each.square()}
        for number, each in enumerate(weights.values())
    }
    return {"model_state_dict": weights, "optimizer_state_dict": {"state": moments, "param_groups": []}}


def ours(count: int, folder: str) -> tuple[Work, dict[str, Any]]:
    """Saves a checkpoint as training does: copy, file, manifest with sha256, and rename."""
    import time

    from pipeline.distributed.ranks import Ranks
    from pipeline.model.checkpoint import tensor_bytes
    from pipeline.train.checkpoint_store import CheckpointStore
    from pipeline.train.parallel import map_tensors

    state = _state(count)
    captured = {**state, "run": {"step": 1, "complete": False}, "random": {}}
    store = CheckpointStore(Path(folder) / "states", "benchmark")

    def copied(value: Any) -> Any:
        return map_tensors(lambda tensor: tensor.to("cpu", copy=True), value)

    copied(state)
    started = time.process_time()
    copied(state)
    copying = time.process_time() - started
    size = tensor_bytes(state) / 1e6

    def work() -> float:
        store.save(captured, Ranks())
        return size

    work()
    return work, {"copying": copying}


def plain(count: int, folder: str, way: str) -> tuple[Work, dict[str, Any]]:
    """The same tensors in one file, without a checksum."""
    import torch
    from safetensors.torch import save_file

    state = _state(count)
    flat = dict(state["model_state_dict"])
    for number, values in state["optimizer_state_dict"]["state"].items():
        flat |= {f"{number}.{name}": tensor for name, tensor in values.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in flat.values()) / 1e6
    path = Path(folder) / way

    def work() -> float:
        if way == "safetensors":
            save_file(flat, path)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            return size
        with path.open("wb") as file:
            if way == "torch":
                torch.save(state, file)
            else:
                for tensor in flat.values():
                    file.write(memoryview(tensor.numpy()).cast("B") if tensor.ndim else tensor.numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        return size

    work()
    if shutil.disk_usage(folder).free < 4e9:
        raise RuntimeError("less than 4 GB are free for temporary files")
    return work, {}
