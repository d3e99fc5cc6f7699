"""Training: tokens per processor-second on three shapes, compared with other projects and with matrix products."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from benchmarks.context import Context
from benchmarks.machine import gemm_side, machine, processor_kind
from benchmarks.measure import Measured
from benchmarks.ours import SHAPES, training_side
from benchmarks.peers import Chosen, training_sides
from benchmarks.results import Row, compared

_UNIT = "tokens per processor-second"


def run(context: Context) -> None:
    """Each shape with one thread, M and B also with two (unless `one_thread`); rounds of all sides and GEMM
    alternate."""
    if context.quick:
        context.skip("others compiled", "the short form tries them eager only")
    if context.one_thread:
        context.skip("training with two threads", "--one-thread was given")
    for name in ("M",) if context.quick else ("S", "M", "B"):
        chosen: dict[str, Chosen] = {}
        for threads in (1,) if context.quick or context.one_thread or name == "S" else (1, 2):
            _shape(context, name, threads, chosen)


def _shape(context: Context, name: str, threads: int, chosen: dict[str, Chosen]) -> None:
    """Measures all sides on one shape; `chosen` has the fastest settings of the others, found with one thread."""
    what = f"training {name}, {threads} thread{'s' * (threads > 1)}"
    peers = training_sides(context, SHAPES[name], threads, chosen)
    gemm = [gemm_side(dtype, threads) for dtype in ("fp32", "bf16")]
    ours, *_ = sides = [training_side(SHAPES[name], threads, 1 if name == "B" else 2), *peers, *gemm]
    done = context.take_turns(sides)
    for side in peers:
        if side.name in done:
            shape = "" if side.name in ("nanoGPT", "the book") else f" {name}"
            goal = f"training{shape} against {side.name}"
            row = compared(what, side.name, done[ours.name], done[side.name], _UNIT, goal)
            tried = chosen[side.name]
            note = f"{side.name}, processor seconds a step when it was tried: {tried}" if tried.tried else ""
            context.add(replace(row, note=note if threads == 1 else ""))
            if name == "B" and threads == 1:
                context.add(_memory(side.name, done[ours.name], done[side.name]))
    for side in gemm:
        context.add(_share(what, done[ours.name], side.name, done[side.name]))


def _share(what: str, ours: Measured, name: str, gemm: Measured) -> Row:
    """Adds a row with the FLOP rate of training as a share of the machine's rate of matrix products."""
    flops = ours.facts["flops_per_token"]
    each = [one.rate * flops / other.rate for one, other in zip(ours.rounds, gemm.rounds, strict=True)]
    wall = [one.wall_rate * flops / other.wall_rate for one, other in zip(ours.rounds, gemm.rounds, strict=True)]
    amx = processor_kind(machine()) == "amx_bf16"
    goal = "training's share of GEMM with AMX" if amx else "training's share of GEMM"
    goal = goal if name == f"{ours.facts['precision']} GEMM" else ""
    return Row(
        what, name, median(each), "share", "GFLOP per processor-second", ours.rate * flops / 1e9, gemm.rate / 1e9,
        median(wall), each, goal,
    )  # fmt: skip


def _memory(name: str, ours: Measured, theirs: Measured) -> Row:
    """Adds a row with the ratio of their peak memory to ours."""
    return Row(
        "peak memory, training B", name, theirs.peak_memory / ours.peak_memory, "times", "MB",
        ours.peak_memory / 1e6, theirs.peak_memory / 1e6,
    )  # fmt: skip
