"""The parts of the GPU benchmark, the most important ones first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.part import Part

CHECKS = {
    "resume": "a resume has the bits of an uninterrupted run",
    "losses": "fp32 losses, GPU and CPU",
    "optimizers": "every optimizer lowers the loss",
    "generation": "greedy tokens, GPU, CPU, without a cache",
    "commands": "the commands and each export",
    "document_mask": "document mask",
    "fp16": "fp16 with a scaled loss",
    "recompute": "recomputed activations",
}
"""The functions of correctness.py, and their names in the table."""


_NO_LIMIT = 3600.0
"""Seconds, for a trial on a machine of any speed."""


def checks(device: str, quick: bool) -> list[Part]:
    """The checks. They need little of a GPU and measure no time, so that several can run at once; they are small in
    any case, and with `quick` may take longer."""
    limit = _NO_LIMIT if quick else 120.0
    found = [
        Part(f"check: {name}", f"correctness:{call}", {"device": device}, limit) for call, name in CHECKS.items()
    ]
    for value, name in (("blocks", "blocks"), ("model", "whole model")):
        settings = {"device": device, "value": value}
        found.append(Part(f"check: losses, compiled {name} and eager", "correctness:compiled", settings, limit))
    return found


def measurements(device: str, quick: bool, nanogpt: Path | None) -> list[Part]:
    """The measurements, one after another; `quick` takes tiny sizes for all of them, and more time."""
    common = {"device": device, "quick": quick}
    small, large = ("tiny", "tiny") if quick else ("124M", "350M")
    found = [Part("bf16 matrix products", "training:gemm", common, 40.0)]
    found += _training("124M", {**common, "shape": small}, nanogpt, 120.0)
    used = {**common, "shape": small}
    for precision in ("bf16", "fp32"):
        settings = {**used, "precision": precision}
        found.append(Part(f"124M, evaluation, {precision}", "using:evaluation", settings, 45.0))
    for prompts in (1, 8):
        name = f"124M, generation, {prompts} prompt{'s' * (prompts > 1)}"
        found.append(Part(name, "using:generation", {**used, "prompts": prompts}, 45.0))
    found += _training("350M", {**common, "shape": large}, nanogpt, 150.0)
    return [replace(part, limit=_NO_LIMIT) for part in found] if quick else found


def _training(name: str, settings: dict[str, object], nanogpt: Path | None, limit: float) -> list[Part]:
    def ours(compile: str, shown: str) -> Part:
        return Part(f"{name}, {shown}", "training:ours", {**settings, "compile": compile}, limit)

    found = [ours("model", "whole model compiled")]
    if nanogpt is not None:
        theirs = {**settings, "compile": True, "code": str(nanogpt)}
        found.append(Part(f"{name}, nanoGPT compiled", "training:nanogpt", theirs, limit))
    return [*found, ours("blocks", "blocks compiled"), ours("false", "eager")]
