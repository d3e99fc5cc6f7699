"""GPU: GPT-2 small at context 1024 in bf16: tokens per second, share of the measured GEMM rate, peak memory.

`benchmarks/gpu.sh` runs all settings. Each one is measured in a separate process, so that running out of memory
does not affect the others, and its peak memory is known.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.machine import machine
from benchmarks.measure import ROOT
from benchmarks.ours import SHAPES, prepared
from benchmarks.results import FOLDER, Results, Row, shown_command

_TIMES = 5
"""The number of timed groups of steps; the result is the median."""


@dataclass(frozen=True)
class Setting:
    """How one process trains.

    Attributes:
        side: "ours" or "nanoGPT".
        shape: A name in SHAPES.
        batch_size: Windows in a step, computed at once.
        compiled: Whether blocks (ours) or the model (nanoGPT) are compiled.
        device: "cuda" or, to try the script, "cpu".
        steps: Steps in a group.
        code: The clone of nanoGPT.
    """

    side: str
    shape: str
    batch_size: int
    compiled: bool
    device: str
    steps: int
    code: str = ""

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.shape}, batch {self.batch_size}, {'compiled' if self.compiled else 'eager'}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", default="cuda", show_default=True, help="cuda, or cpu to try the script out.")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="124M", show_default=True)
@click.option("--batch-size", "batch_sizes", type=int, multiple=True, default=(8, 16, 32, 64), show_default=True)
@click.option("--steps", default=10, show_default=True, help="Steps in each of the five groups that are timed.")
@click.option("--nanogpt", type=click.Path(exists=True, file_okay=False, path_type=Path), envvar="NANOGPT")
@click.option("--results", type=click.Path(path_type=Path), default=FOLDER, help="Where gpu-NAME.json goes.")
@click.option("--setting", hidden=True, help="Measures one setting, given as JSON, and prints what it found.")
def main(
    device: str,
    shape: str,
    batch_sizes: tuple[int, ...],
    steps: int,
    nanogpt: Path | None,
    results: Path,
    setting: str | None,
) -> None:
    """Measure training on a GPU, batch size by batch size, eager and compiled, and write results/gpu-NAME.json."""
    if setting:
        click.echo("\n" + json.dumps(_measure(Setting(**json.loads(setting)))))
        return
    started = time.monotonic()
    gemm = _apart(json.dumps(asdict(Setting("gemm", shape, 1, False, device, steps))))
    if "error" in gemm:
        raise click.ClickException(gemm["error"])
    click.echo(f"{gemm['device']}: bf16 GEMM {gemm['flops'] / 1e12:,.1f} TFLOP/s")
    found = Results(f"gpu-{_slug(gemm['device'])}", machine={**machine(), "gpu": gemm["device"]})
    found.command = shown_command(sys.argv[1:]).replace("benchmarks", "benchmarks.gpu", 1)
    sides = ["ours", *(["nanoGPT"] if nanogpt else [])]
    code = str(nanogpt.resolve()) if nanogpt else ""
    for side in sides:
        for batch_size in batch_sizes:
            for compiled in (True, False):
                one_setting = Setting(side, shape, batch_size, compiled, device, steps, code)
                measured = _apart(json.dumps(asdict(one_setting)))
                _add(found, one_setting, measured, gemm["flops"])
                found.seconds = time.monotonic() - started
                found.write(results)  # after each setting, so that an interruption loses nothing
    click.echo(f"wrote gpu-{_slug(gemm['device'])}.json")


def _slug(name: str) -> str:
    return "-".join("".join(each if each.isalnum() else " " for each in name.lower()).split())


def _apart(setting: str) -> dict[str, Any]:
    """Measures a setting in a separate process; {"error": …} if it failed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--setting", setting], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return {"error": lines[-1][:300]}
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def _add(found: Results, setting: Setting, measured: dict[str, Any], gemm: float) -> None:
    if "error" in measured:
        found.skipped[f"{setting.side}, {setting.name}"] = measured["error"]
        click.echo(f"{setting.side}, {setting.name}: {measured['error']}")
        return
    share = measured["rate"] * measured["flops_per_token"] / gemm
    memory = f"{measured['peak_memory'] / 1e9:.1f} GB"
    best = setting.side == "ours" and share >= max((row.value for row in found.rows if row.goal), default=0.0)
    row = Row(
        f"{setting.side}, {setting.name}", "bf16 GEMM", share, "share", "TFLOP/s",
        measured["rate"] * measured["flops_per_token"] / 1e12, gemm / 1e12, goal="MFU on a GPU" if best else "",
        rounds=measured["rates"],
        note=f"{measured['rate']:,.0f} tokens/s, {memory}, first step {measured['first_step']:.1f} s",
    )  # fmt: skip
    if best:  # the goal is for the best setting
        found.rows[:] = [Row(**{**asdict(each), "goal": ""}) for each in found.rows]
    found.rows.append(row)
    click.echo(f"{setting.side}, {setting.name}: {row.note}, {share:.1%} of GEMM")


# ── in the process of one setting ─────────────────────────────────────────────────────────────────


def _measure(setting: Setting) -> dict[str, Any]:
    import torch

    if setting.side == "gemm":
        return _gemm(setting.device)
    step, tokens, flops = _ours(setting) if setting.side == "ours" else _nanogpt(setting)
    started = time.perf_counter()
    step()
    _wait(setting.device)
    first = time.perf_counter() - started
    for _ in range(5):
        step()
    rates = []
    for _ in range(_TIMES):
        _wait(setting.device)
        started = time.perf_counter()
        for _ in range(setting.steps):
            step()
        _wait(setting.device)
        rates.append(setting.steps * tokens / (time.perf_counter() - started))
    from benchmarks.measure import peak_memory

    peak = torch.cuda.max_memory_allocated() if setting.device != "cpu" else peak_memory()
    return {
        "rate": median(rates), "rates": rates, "flops_per_token": flops, "peak_memory": peak, "first_step": first,
    }  # fmt: skip


def _wait(device: str) -> None:
    """Waits for the GPU: calls return before their work is done."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def _gemm(device: str) -> dict[str, Any]:
    """The best rate of bf16 matrix products of several large sizes, in floating-point operations per second."""
    import torch

    best = 0.0
    for size in (4096, 8192, 12288) if device != "cpu" else (1024,):
        a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
        for _ in range(5):
            a @ b
        for _ in range(_TIMES):
            _wait(device)
            started = time.perf_counter()
            for _ in range(10):
                a @ b
            _wait(device)
            best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    name = torch.cuda.get_device_name() if device != "cpu" else "cpu"
    return {"flops": best, "device": name}


Prepared = tuple[Callable[[], object], int, int]


def _ours(setting: Setting) -> Prepared:
    """A step of the training loop, with the params of the preset except for the sizes."""
    from pipeline.train.loop import train_step
    from pipeline.train.state import TrainState

    shape = {**SHAPES[setting.shape], "batch_size": setting.batch_size}
    overrides = (
        f"runtime.device={setting.device}", f"runtime.compile={str(setting.compiled).lower()}",
        "train.precision=bf16", "train.grad_clip=1.0",
    )  # fmt: skip
    run, state = prepared(shape, overrides), TrainState()
    return (
        lambda: train_step(run, state),
        setting.batch_size * shape["context_length"],
        run.model.architecture.flops_per_token,
    )


def _nanogpt(setting: Setting) -> Prepared:
    """nanoGPT's model and optimizer, as in its train.py on a GPU: bf16 autocast, clipping, fused AdamW."""
    import torch

    sys.path.insert(0, setting.code)
    from model import GPT, GPTConfig

    shape = SHAPES[setting.shape]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = GPT(
        GPTConfig(
            block_size=shape["context_length"], vocab_size=shape["vocab_size"], n_layer=shape["n_layers"],
            n_head=shape["n_heads"], n_embd=shape["emb_dim"], dropout=0.0, bias=True,
        )
    ).to(setting.device)  # fmt: skip
    kind = torch.device(setting.device).type
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), kind)
    called = torch.compile(model) if setting.compiled else model
    tokens = torch.randint(
        0, shape["vocab_size"], (setting.batch_size, shape["context_length"] + 1), device=setting.device
    )
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    count = (
        sum(each.numel() for each in model.parameters()) - model.transformer.wpe.weight.numel()
    )  # the head is tied
    flops = 6 * count + 12 * shape["n_layers"] * shape["context_length"] * shape["emb_dim"]

    def step() -> None:
        with torch.autocast(kind, torch.bfloat16):
            loss = called(x, y)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, setting.batch_size * shape["context_length"], flops


if __name__ == "__main__":
    main()
