"""The side of this project: its real code path, with the fastest settings, which are chosen here."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import ROOT, Side, Work

if TYPE_CHECKING:
    import numpy as np

    from pipeline.data.tokenizer import Tokenizer
    from pipeline.params.params import Params
    from pipeline.train.run import TrainingRun

STEADY = ("train.precision=auto", "runtime.compile=true")
"""Settings to measure steps per second, without compile time. The precision is that of a run on this processor."""

WHOLE_RUNS: tuple[str, ...] = ()
"""Settings to measure whole runs of presets, with everything included: those of the preset."""

SHAPES: dict[str, dict[str, int]] = {
    name: dict(
        zip(("vocab_size", "context_length", "n_layers", "n_heads", "emb_dim", "batch_size"), sizes, strict=True)
    )
    for name, sizes in {
        "S": (50304, 256, 4, 4, 256, 8),
        "M": (4096, 256, 6, 6, 384, 8),
        "B": (50304, 256, 12, 12, 768, 2),
        "124M": (50304, 1024, 12, 12, 768, 64),
        "350M": (50304, 1024, 24, 16, 1024, 64),
        "tiny": (512, 16, 1, 2, 16, 2),
    }.items()
}
"""The trained models: GPT-2 with a tied head and without dropout."""


def params(shape: dict[str, int], overrides: tuple[str, ...]) -> Params:
    """The params of a shape: the preset of GPT-2 small with other sizes."""
    from pipeline.params.presets import write_preset
    from pipeline.params.reader import load_params

    sizes = [f"model.{name}={shape[name]}" for name in ("context_length", "n_layers", "n_heads", "emb_dim")]
    batch = [f"train.{name}={shape['batch_size']}" for name in ("batch_size", "micro_batch_size")]
    plain = ("train.eval_callbacks.use=[]", "train.grad_clip=0.0", "train.log_every=0", "runtime.device=cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        write_preset("gpt2-124m", path)
        return load_params(path, [*sizes, *batch, *plain, *overrides])


def tokenizer(vocab_size: int) -> Tokenizer:
    """A dummy tokenizer with the given vocabulary size; only the size matters here."""
    from pipeline.data.patterns import GPT2_PATTERN
    from pipeline.data.tokenizer import END_OF_TEXT, Tokenizer

    ranks = {bytes([byte]): byte for byte in range(256)}
    longer = ((256 + number).to_bytes(3, "big") for number in range(vocab_size - 257))
    ranks |= {sequence: 256 + number for number, sequence in enumerate(longer)}
    return Tokenizer("benchmark", GPT2_PATTERN, ranks, {END_OF_TEXT: vocab_size - 1})


def prepared(
    shape: dict[str, int],
    overrides: tuple[str, ...],
    text: np.ndarray[Any, Any] | None = None,
    folder: Path = Path("unused"),
) -> TrainingRun:
    """A `TrainingRun` for a shape, as the train stage prepares it.

    Args:
        shape: The sizes, as in SHAPES.
        overrides: Further settings.
        text: The ids; None for random ones.
        folder: Where its training checkpoints would go.
    """
    import numpy as np

    from pipeline.data.masked import MaskedIds
    from pipeline.distributed.ranks import Ranks
    from pipeline.train.checkpoint_store import CheckpointStore
    from pipeline.train.components import Components
    from pipeline.train.data import TrainingData
    from pipeline.train.length import Length
    from pipeline.train.phases import Phase
    from pipeline.train.run import TrainingRun
    from pipeline.train.runtime_config import resolve_runtime_config

    resolved = params(shape, overrides)
    if text is None:
        text = np.random.default_rng(1).integers(0, shape["vocab_size"] - 1, 2_000_000).astype("<u2")
    phase = Phase(Length(shape["batch_size"], (1 << 40,)), lambda step: 1.0, {}, CheckpointStore(folder, "unused"))
    components, ids = (
        Components.load(resolved, ROOT / "plugins"),
        {"train": MaskedIds(text), "val": MaskedIds(text[:1000])},
    )
    data = TrainingData.build(resolved, tokenizer(shape["vocab_size"]), ids, components.batch_sampler)
    run = TrainingRun.build(
        resolved, components, data, phase, resolve_runtime_config(resolved, Ranks(), {}, float("inf"))
    )
    run.model.train()
    return run


def training_side(shape: dict[str, int], threads: int, steps: int) -> Side:
    """A round of steps of the training loop; the work is in tokens."""
    settings = {"shape": shape, "threads": threads, "steps": steps}
    return Side("ours", "benchmarks.ours:training", settings, threads)


def training(shape: dict[str, int], threads: int, steps: int) -> tuple[Work, dict[str, Any]]:
    """Prepares a run and takes warm-up steps."""
    from pipeline.train.loop import train_step
    from pipeline.train.state import TrainState

    run, state = prepared(shape, (*STEADY, f"runtime.threads={threads}")), TrainState()

    def work() -> float:
        return float(sum(train_step(run, state)[1] for _ in range(steps)))

    for _ in range(3):
        work()
    precision, flops = run.runtime_config.precision, run.model.architecture.flops_per_token
    return work, {"precision": precision, "flops_per_token": flops}


class TemporaryProject:
    """A project in a temporary folder, with the shipped plugins, a preset, and texts below data/raw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data" / "raw").mkdir(parents=True)
        shutil.copytree(ROOT / "plugins", folder / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "params.yaml", folder)

    @property
    def raw(self) -> Path:
        """The folder of the texts."""
        return self.folder / "data" / "raw"

    def preset(self, name: str) -> None:
        """Writes a preset into params.yaml."""
        from pipeline.params.presets import write_preset

        write_preset(name, self.folder / "params.yaml")

    def side(
        self,
        name: str,
        stages: list[str],
        settings: tuple[str, ...],
        work: float,
        cpus: int,
        environment: dict[str, str] | None = None,
        threads: int = 1,
    ) -> Side:
        """A side that runs commands of `pipeline` as whole processes, all with the same settings.

        Args:
            name: What the side is called.
            stages: The commands.
            settings: What is set for each of them.
            work: What they do together.
            cpus: How many processors they may use; 0 for all.
            environment: Further variables.
            threads: Of torch.
        """
        options = [part for value in settings for part in ("--set", value)]
        return Side(
            name,
            "benchmarks.measure:command",
            {
                "commands": [["python", "-m", "pipeline", *stage.split(), *options] for stage in stages],
                "folder": str(self.folder),
                "work": work,
                "cpus": cpus,
                "environment": environment or {},
            },
            threads,
        )
