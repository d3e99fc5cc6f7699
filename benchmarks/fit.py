"""How good the settings of `pipeline fit` are, compared with random settings at the same processor time.

`python -m benchmarks.fit TEXT... --seconds 120` trains on each text (a file or a folder) what fit chooses, with
three seeds, and 16 random settings, the same ones on every text; the best two of them get three seeds as well. Each
run gets as many steps as one thread takes in these seconds of processor time, measured on its own first steps.
Start, evaluations and compiling do not count, so other programs on the machine change little.

Each run adds a line to a file of JSON lines; an interrupted study continues where it ended.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import click

from benchmarks.measure import ROOT
from benchmarks.results import FOLDER

if TYPE_CHECKING:
    from pipeline.params.params import Params
    from pipeline.train.run import TrainingRun

_CHOSEN = "fit"
_SEEDS = (1, 2, 3)
_REPEATED = 2
"""How many of the random settings get all seeds: those that are best with the first one."""
_T95 = {2: 12.71, 3: 4.303}
"""Student's t for a 95% interval of the mean of so many values."""


def drawn(number: int, seed: int = 16) -> dict[str, Any]:
    """The random setting of a number: each value by itself, from a range that people use for small models."""
    draw = random.Random(f"{seed}.{number}")
    width, context = draw.choice([64, 128, 192, 256, 320]), draw.choice([64, 128, 256])
    lr = 0.01 * 8 ** draw.random()
    return {
        "tokenize.tokenizer.bpe.vocab_size": draw.choice([512, 1024, 2048, 4096, 8192]),
        "model.n_layers": draw.choice([2, 3, 4, 6]),
        "model.emb_dim": width,
        "model.n_heads": width // 64,
        "model.context_length": context,
        "model.dropout": draw.choice([0.0, 0.1, 0.2]),
        "train.batch_size": draw.choice([1024, 2048, 4096, 8192]) // context,
        "train.optimizer.muon.lr": float(f"{lr:.2g}"),
        "train.optimizer.muon.adamw_lr": float(f"{lr / 2:.2g}"),
        "train.optimizer.muon.momentum": draw.choice([0.85, 0.9, 0.95]),
    }


class Trainer:
    """Trains on one text, in this process, with one thread; each vocabulary is tokenized once.

    Args:
        text: A file, or a folder.
        seconds: Processor time of a run's steps.
        folder: An empty one.
    """

    def __init__(self, text: Path, seconds: float, folder: Path) -> None:
        self.text, self.seconds, self._folder = text, seconds, folder

    def __call__(self, settings: dict[str, Any], seed: int) -> dict[str, Any]:
        """Trains with the settings, for as many steps as fit the time; what came out."""
        steps = max(20, int(self.seconds / self._step_seconds(settings)))
        values = {**settings, "train.seed": seed, "train.budget.amount": steps}
        values.setdefault("train.schedule.warmup_steps", max(2, steps // 50))
        values |= {"train.evaluation.every": -(-steps // 4), "train.evaluation.windows": 32}
        run = self._run(values)
        began = time.process_time()
        state = _trained(run)
        best = state.final["best"]
        return {
            "bits_per_byte": best["bits_per_byte"],
            "steps": state.step,
            "epochs": round(run.length.total_windows / run.data.windows.per_epoch, 2),
            "parameters": run.model.architecture.parameter_count,
            "processor_seconds": round(time.process_time() - began, 1),
        }

    def fitted(self) -> dict[str, Any]:
        """What fit's rules choose for this text, this time and this machine, as `pipeline fit` finds it."""
        from pipeline.commands import fit_rules

        size = float(sum(path.stat().st_size for path in _files(self.text)))
        values: dict[str, Any] = {
            "tokenize.tokenizer.bpe.vocab_size": 4096, "model.n_layers": 2, "model.emb_dim": 128,
            "model.n_heads": 2, "model.context_length": 64, "model.dropout": 0.0, "train.batch_size": 24,
        }  # fmt: skip
        for _ in range(2):  # the speed of another shape, then that of the chosen one
            run, seconds = self._run(values), self._step_seconds(values)
            per_step = run.length.batch_size * run.data.windows.context_length
            flops = self.seconds * per_step * run.model.architecture.flops_per_token / seconds
            vocabulary = fit_rules.vocabulary(size, flops)
            tokenizer = {"tokenize.tokenizer.bpe.vocab_size": vocabulary}
            if not vocabulary:
                tokenizer = {"tokenize.tokenizer.name": "characters"}
            tokens = len(self._run({**values, **tokenizer}).data.ids["train"])
            chosen = fit_rules.setting(tokens, vocabulary or 100, flops)
            values = {**tokenizer, **chosen.values()}
        steps = int(self.seconds / self._step_seconds(values))
        return {**tokenizer, **fit_rules.with_steps(chosen, steps, tokens).values()}

    def _step_seconds(self, settings: dict[str, Any]) -> float:
        """Processor seconds of a warm step: a low one, since other programs only lengthen them."""
        from pipeline.train.loop import train_step
        from pipeline.train.state import TrainState

        run, taken = self._run(settings), []
        run.model.train()
        while len(taken) < 5 or (sum(taken) < 2.0 and len(taken) < 40):
            began = time.process_time()
            train_step(run, TrainState())
            taken.append(time.process_time() - began)
        return sorted(taken[1:])[len(taken) // 4]

    def _run(self, settings: dict[str, Any]) -> TrainingRun:
        from pipeline.core.paths import Paths
        from pipeline.data.tokens import TokenFolder
        from pipeline.distributed.ranks import Ranks
        from pipeline.train.components import Components
        from pipeline.train.data import TrainingData
        from pipeline.train.phases import phases
        from pipeline.train.run import TrainingRun
        from pipeline.train.runtime_config import resolve_runtime_config

        params = self._params(settings)
        paths = Paths(self._tokenized(params))
        components = Components.load(params, ROOT / "plugins")
        splits = TokenFolder(paths.splits, "")
        data = TrainingData.read(params, splits, components.batch_sampler)
        per_token = components.architecture(params.model, data.tokenizer).flops_per_token
        about = {"params": {"train": {}}, "data": "", "versions": {}}
        shutil.rmtree(paths.resume, ignore_errors=True)
        phase = phases(params.train, components.schedule, data.windows, per_token, about, paths.resume)[-1]
        config = resolve_runtime_config(params, Ranks(), {}, 0.0)
        return TrainingRun.build(params, components, data, phase, config)

    def _params(self, settings: dict[str, Any]) -> Params:
        from pipeline.params.reader import load_params

        few = len(_files(self.text)) < 20
        fixed = {
            "tokenize.corpus.name": "files", "tokenize.corpus.files.include": '["**/*"]',
            "split.by": "position" if few else "document", "train.log_every": 0, "train.eval_callbacks.use": "[]",
            "train.micro_batch_size": settings["train.batch_size"], "runtime.threads": 1, "runtime.device": "cpu",
            "runtime.compile": "false", "runtime.save_seconds": 1e6,
        }  # fmt: skip
        return load_params(ROOT / "params.yaml", [f"{key}={value}" for key, value in (settings | fixed).items()])

    def _tokenized(self, params: Params) -> Path:
        """A project's folder with the splits of the params' tokenizer."""
        from pipeline.core.paths import Paths
        from pipeline.split import stage as split
        from pipeline.tokenize import stage as tokenize

        tokenizer = params.tokenize.tokenizer
        root = self._folder / (f"bpe-{tokenizer.bpe.vocab_size}" if tokenizer.name == "bpe" else tokenizer.name)
        if not root.exists():
            raw = root / "data" / "raw"
            shutil.copytree(ROOT / "plugins", root / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
            if self.text.is_dir():
                shutil.copytree(self.text, raw)
            else:
                raw.mkdir(parents=True)
                shutil.copy(self.text, raw)
            with redirect_stdout(io.StringIO()):
                for stage in (tokenize, split):
                    stage.run(params, Paths(root))
        return root


def _trained(run: TrainingRun) -> Any:
    from pipeline.train.loop import train
    from pipeline.train.state import TrainState

    state = TrainState()
    with redirect_stdout(io.StringIO()):
        train(run, state)
    return state


def _files(text: Path) -> list[Path]:
    return [path for path in text.rglob("*") if path.is_file()] if text.is_dir() else [text]


# ── the study ─────────────────────────────────────────────────────────────────────────────────────


def missing(rows: Iterable[dict[str, Any]], texts: Iterable[str], settings: int) -> list[tuple[str, str, int]]:
    """The runs that a study lacks, as text, setting and seed: fit, each random setting, further seeds of fit, and,
    once these are done, further seeds of the best random settings."""
    done = {(row["text"], row["setting"], row["seed"]): row["bits_per_byte"] for row in rows}
    texts, plan = list(texts), []
    plan += [(text, _CHOSEN, _SEEDS[0]) for text in texts]
    plan += [(text, str(number), _SEEDS[0]) for number in range(settings) for text in texts]
    plan += [(text, _CHOSEN, seed) for seed in _SEEDS[1:] for text in texts]
    left = [each for each in plan if each not in done]
    if left:
        return left
    best = {
        text: sorted(range(settings), key=lambda number: done[text, str(number), 1])[:_REPEATED] for text in texts
    }
    repeated = [(text, str(number), seed) for seed in _SEEDS[1:] for text in texts for number in best[text]]
    return [each for each in repeated if each not in done]


def table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """For each text: what fit chose, the best random setting, and their difference, in bits a byte of val."""
    found = [("text", "settings", "fit", "best of the random ones", "median", "fit − best", "within")]
    for text in dict.fromkeys(row["text"] for row in rows):
        values: dict[str, list[float]] = {}
        for row in rows:
            if row["text"] == text:
                values.setdefault(row["setting"], []).append(row["bits_per_byte"])
        ours, others = values.pop(_CHOSEN, []), sorted(values.values(), key=mean)
        if not ours or not others:
            continue
        seeds = max(map(len, others))
        best = next(each for each in others if len(each) == seeds)
        gap, widest = mean(ours) - mean(best), max(_half(ours), _half(best))
        middle = sorted(mean(each) for each in others)[len(others) // 2]
        found.append((
            text, str(len(others)), _shown(ours), _shown(best), f"{middle:.3f}", f"{gap:+.3f}",
            "yes" if gap <= 0.02 or gap <= widest else "no",
        ))  # fmt: skip
    return found


def _half(values: list[float]) -> float:
    """Half of the 95% interval of the mean; 0 of a single value."""
    return _T95[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) in _T95 else 0.0


def _shown(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {_half(values):.3f} ({len(values)} seeds)" if len(values) > 1 else "")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("texts", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", type=click.FloatRange(min=1), default=120.0, show_default=True, help="Of a run's steps.")
@click.option("--settings", type=click.IntRange(1, 100), default=16, show_default=True, help="Drawn at random.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=FOLDER / "fit.jsonl", help="The runs' file."
)
@click.option("--show", is_flag=True, help="Only print the table of the runs that are done.")
def main(texts: tuple[Path, ...], seconds: float, settings: int, out: Path, show: bool) -> None:
    """Compare the settings of `pipeline fit` with random ones on each of TEXTS, files or folders of plain text."""
    os.environ["OMP_NUM_THREADS"] = "1"
    names = {text.stem: text for text in texts}
    rows: list[dict[str, Any]] = []
    if out.exists():
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["text"] in names and row["seconds"] == seconds]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        trainers = {name: Trainer(text, seconds, Path(folder) / name) for name, text in names.items()}
        while not show and (plan := missing(rows, names, settings)):
            name, number, seed = plan[0]
            trainer = trainers[name]
            chosen = trainer.fitted() if number == _CHOSEN else drawn(int(number))
            row = {"text": name, "seconds": seconds, "setting": number, "seed": seed, **trainer(chosen, seed)}
            row["settings"] = chosen
            rows.append(row)
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            click.echo(
                f"{name}, {number}, seed {seed}: {row['bits_per_byte']:.4f} bits a byte; {len(plan) - 1} left"
            )
    lines = table(rows)
    for cells in [lines[0], ("---", *["---:"] * (len(lines[0]) - 1)), *lines[1:]]:
        click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
