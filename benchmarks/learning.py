"""Learning speed: the loss on all validation characters of tinyshakespeare, and the training time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.context import Context
from benchmarks.measure import Round, Side, SideFailedError, facts_of, take_turns
from benchmarks.ours import WHOLE_RUNS, TemporaryProject
from benchmarks.results import Row

if TYPE_CHECKING:
    import numpy as np
    import torch

_CONTEXT = 64
_SEEDS = (1, 2, 3, 4, 5)

# The settings for a CPU in nanoGPT's README; the last checkpoint is scored, as for ours.
_NANOGPT = [
    "--device=cpu",
    "--eval_iters=1",
    "--eval_interval=2000",
    "--log_interval=100",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
    "--always_save_checkpoint=True",
]


def run(context: Context) -> None:
    """Whole processes on one thread, compiling counted: nanoGPT once, `shakespeare-fast` with five seeds,
    `shakespeare-best` once. All are scored alike: non-overlapping windows of 64, every character but the first."""
    text = context.text("tinyshakespeare.txt")
    if text is None:
        return
    theirs = None if context.quick else _nanogpt(context, text)
    fast, best = _preset("shakespeare-fast"), _preset("shakespeare-best")
    ours = [_ours(context, text, fast, seed) for seed in (_SEEDS[:1] if context.quick else _SEEDS)]
    _add_fast(context, fast, ours, theirs)
    if not context.quick:
        _add_best(context, best, _ours(context, text, best, 1), theirs)


def _preset(name: str) -> str:
    """The preset, or the most similar one if it does not exist yet."""
    from pipeline.params.presets import PRESETS

    return name if name in PRESETS else "shakespeare-char"


def _add_fast(context: Context, name: str, ours: list[_Learned], theirs: _Learned | None) -> None:
    losses, seconds = [each.loss for each in ours], [each.time.processor for each in ours]
    spread = f" ± {stdev(losses):.3f}" if len(losses) > 1 else ""
    what = f"tinyshakespeare, {name}"
    note = f"mean of {len(losses)} seeds{spread}; {', '.join(f'{loss:.3f}' for loss in losses)}"
    context.add(Row(f"{what}: loss over every validation character", "", mean(losses), "nats", rounds=losses,
                    goal="nanoGPT's loss", note=note))  # fmt: skip
    context.add(Row(f"{what}: parameters", "", float(ours[0].parameters), "count", goal="nanoGPT's parameters"))
    context.add(Row(f"{what}: processor time of the train stage", "", mean(seconds), "seconds",
                    wall=mean(each.time.wall for each in ours), rounds=seconds))  # fmt: skip
    if theirs:
        wall = theirs.time.wall / mean(each.time.wall for each in ours)
        context.add(Row(
            f"{what}: training, start-up and evaluations included", "nanoGPT",
            theirs.time.processor / mean(seconds), "times", "runs per second",
            1 / mean(seconds), 1 / theirs.time.processor, wall, goal="nanoGPT's loss in a fifteenth of its time",
        ))  # fmt: skip
        steps = mean(each.steps for each in ours)
        context.add(Row(
            f"{what}: all of its steps", "nanoGPT", theirs.steps / steps, "times", "runs per second",
            1 / steps, 1 / theirs.steps,
            note=f"processor seconds: {steps:.1f} ours, {theirs.steps:.1f} nanoGPT's",
        ))  # fmt: skip


def _add_best(context: Context, name: str, ours: _Learned, theirs: _Learned | None) -> None:
    what = f"tinyshakespeare, {name}"
    context.add(Row(f"{what}: loss over every validation character", "", ours.loss, "nats",
                    goal="best loss in nanoGPT's time"))  # fmt: skip
    context.add(Row(f"{what}: parameters", "", float(ours.parameters), "count"))
    context.add(Row(f"{what}: processor time of the train stage", "", ours.time.processor, "seconds",
                    wall=ours.time.wall))  # fmt: skip
    if theirs:
        context.add(Row(
            f"{what}: training", "nanoGPT", theirs.time.processor / ours.time.processor, "times",
            "runs per second", 1 / ours.time.processor, 1 / theirs.time.processor,
            theirs.time.wall / ours.time.wall, goal="no longer than nanoGPT",
        ))  # fmt: skip


class _Learned:
    """The time of a run, the time of its steps with compilation, and the scores of its checkpoint."""

    def __init__(self, time: Round, start: Round, facts: dict[str, Any]) -> None:
        self.time, self.loss, self.parameters = time, float(facts["loss"]), int(facts["parameters"])
        self.steps = time.processor - start.processor


def compiling(folder: Path) -> dict[str, str]:
    """Environment variables for an empty compile cache, and compilation in the measured process."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def _ours(context: Context, text: Path, preset: str, seed: int) -> _Learned:
    project = TemporaryProject(Path(tempfile.mkdtemp(dir=context.folder)))
    shutil.copy(text, project.raw)
    project.preset(preset)
    settings = (f"train.seed={seed}", "runtime.threads=1", *WHOLE_RUNS)
    environment = compiling(project.folder)
    take_turns([project.side("the data", ["tokenize", "split"], settings, 1.0, 1, environment)], 1)
    # The time of start-up, evaluations and saving: the same stage with a single step.
    short = [*settings, "train.budget.amount=1", "train.schedule.warmup_steps=0", "runtime.compile=false"]
    start = take_turns([project.side("start", ["train"], short, 1.0, 0, environment, 1)], 1)["start"].rounds[0]
    done = take_turns([project.side("ours", ["train"], settings, 1.0, 0, environment, 1)], 1)
    scored = facts_of(Side("score", "benchmarks.learning:score_ours", {"folder": str(project.folder)}))
    return _Learned(done["ours"].rounds[0], start, scored)


def _nanogpt(context: Context, text: Path) -> _Learned | None:
    """nanoGPT's train.py on the same split, eager and compiled (with compile time); the faster one is used."""
    code = context.peer("nanogpt", "nanoGPT's run on tinyshakespeare")
    if code is None:
        return None
    data = context.folder / "nanogpt-data"
    facts_of(Side("data", "benchmarks.learning:nanogpt_data", {"text": str(text), "folder": str(data)}))
    found = []
    for compiled in (False, True):
        out = context.folder / f"nanogpt-{compiled}"
        line = ["python", "train.py", "config/train_shakespeare_char.py", *_NANOGPT]
        line += [f"--compile={compiled}", f"--out_dir={out}", f"--dataset={data}"]
        environment = {**compiling(out), "PYTHONDONTWRITEBYTECODE": "1"}

        def timed(line: list[str], environment: dict[str, str] = environment) -> Round:
            settings = {"commands": [line], "folder": str(code[0]), "work": 1.0, "environment": environment}
            return take_turns([Side("nanoGPT", "benchmarks.measure:command", settings)], 1)["nanoGPT"].rounds[0]

        start = timed([*(part for part in line if "compile" not in part), "--max_iters=0", "--compile=False"])
        try:
            done = timed(line)
        except SideFailedError as error:
            if not compiled:
                raise
            context.skip("tinyshakespeare, nanoGPT, compiled", f"it failed: {str(error).splitlines()[-1]}")
            continue
        place = {"folder": str(data), "checkpoint": str(out / "ckpt.pt")}
        scored = facts_of(Side("score", "benchmarks.learning:score_nanogpt", place, code=code))
        found.append(_Learned(done, start, scored))
        name = f"tinyshakespeare, nanoGPT, {'compiled' if compiled else 'eager'}"
        context.add(Row(f"{name}: loss over every validation character", "", found[-1].loss, "nats"))
        context.add(Row(f"{name}: processor time", "", done.processor, "seconds", wall=done.wall))
    return min(found, key=lambda each: each.time.processor)


def nanogpt_data(text: str, folder: str) -> tuple[None, dict[str, Any]]:
    """Writes the files of nanoGPT's prepare.py: the first 90% of the characters for training, the rest for
    validation."""
    import pickle

    import numpy as np

    whole = Path(text).read_text(encoding="utf-8")
    characters = {each: number for number, each in enumerate(sorted(set(whole)))}
    ids = np.array([characters[each] for each in whole], dtype=np.uint16)
    cut = int(len(whole) * 0.9)
    Path(folder).mkdir()
    ids[:cut].tofile(Path(folder) / "train.bin")
    ids[cut:].tofile(Path(folder) / "val.bin")
    names = {"vocab_size": len(characters), "stoi": characters, "itos": {n: each for each, n in characters.items()}}
    (Path(folder) / "meta.pkl").write_bytes(pickle.dumps(names))
    return None, {}


def score_nanogpt(folder: str, checkpoint: str) -> tuple[None, dict[str, Any]]:
    """The loss of nanoGPT's last checkpoint, computed with its model."""
    import numpy as np
    import torch
    from model import GPT, GPTConfig

    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict({name.removeprefix("_orig_mod."): each for name, each in saved["model"].items()})
    ids = np.fromfile(Path(folder) / "val.bin", dtype=np.uint16)
    count = sum(each.numel() for each in model.parameters())
    # With targets, the model returns the logits of all positions instead of the last one only.
    return None, {"loss": mean_loss(lambda x: model(x, x)[0], ids), "parameters": count}


def score_ours(folder: str) -> tuple[None, dict[str, Any]]:
    """The loss of our last checkpoint (the best one would be selected on this text)."""

    from pipeline.core.paths import Paths
    from pipeline.data.tokens import TokenFolder
    from pipeline.model import load

    paths = Paths(Path(folder))
    checkpoint = load(paths.checkpoint, "last", plugins=paths.plugins)
    ids = TokenFolder(paths.splits, "").ids("val")
    metrics_json = json.loads((paths.metrics / "train.json").read_text(encoding="utf-8"))
    return None, {
        "loss": mean_loss(lambda x: checkpoint.model(x).logits, ids),
        "parameters": checkpoint.model.architecture.parameter_count,
        "told": metrics_json["val"]["loss"],
    }


def mean_loss(logits: Callable[[torch.Tensor], torch.Tensor], ids: np.ndarray) -> float:
    """Nats per character over all targets, in non-overlapping windows of 64; the last window may be shorter."""
    import torch
    import torch.nn.functional as F

    tokens = torch.from_numpy(ids.astype("int64"))
    whole = (len(tokens) - 1) // _CONTEXT * _CONTEXT
    inputs, targets = (part.view(-1, _CONTEXT).split(256) for part in (tokens[:whole], tokens[1 : whole + 1]))
    batches = list(zip(inputs, targets, strict=True))
    if whole < len(tokens) - 1:
        batches.append((tokens[None, whole:-1], tokens[None, whole + 1 :]))
    with torch.inference_mode():
        nats = sum(
            float(F.cross_entropy(logits(x).flatten(0, 1), y.flatten(), reduction="sum")) for x, y in batches
        )
    return nats / (len(tokens) - 1)
