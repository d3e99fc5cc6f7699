"""A preset trained under named variants with several seeds, through the project's own stages.

`python -m benchmarks.variants ablation` changes one thing at a time, and shows what each is worth;
`python -m benchmarks.variants precision` compares the fast path with fp32 at each evaluation.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import studies
from benchmarks.learning import compiling
from benchmarks.measure import SideFailedError, take_turns
from benchmarks.ours import TemporaryProject
from benchmarks.results import FOLDER, shown_command
from benchmarks.studies import EXACT, FAST, SHIPPED, Study, Trained

_TEXT = "tinyshakespeare.txt"
_ONE_THREAD = ("runtime.device=cpu", "runtime.threads=1")


@dataclass(frozen=True)
class Variant:
    """A named set of settings."""

    name: str
    settings: tuple[str, ...] = ()


ABLATION = (
    Variant(SHIPPED),
    Variant("model gpt2", ("model.name=gpt2",)),
    # Same learning rate of embeddings and head as with Muon, and no weight decay, as there.
    Variant("AdamW for Muon", (
        "train.optimizer.name=adamw", "train.optimizer.adamw.lr=5e-3", "train.optimizer.adamw.embedding_lr_scale=4",
        "train.optimizer.adamw.weight_decay=0",
    )),
    Variant("Muon's rate halved", ("train.optimizer.muon.lr=0.04",)),
    Variant("Muon's rate doubled", ("train.optimizer.muon.lr=0.16",)),
    Variant("momentum 0.95", ("train.optimizer.muon.momentum=0.95",)),
    Variant("3 Newton–Schulz steps", ("train.optimizer.muon.ns_steps=3",)),
    Variant("the AdamW part's rate halved", ("train.optimizer.muon.adamw_lr=1e-2",)),
    Variant("the AdamW part's rate doubled", ("train.optimizer.muon.adamw_lr=4e-2",)),
    Variant("1 layer", ("model.n_layers=1",)),
    Variant("3 layers", ("model.n_layers=3",)),
    Variant("4 heads", ("model.n_heads=4",)),
    Variant("width 96", ("model.emb_dim=96",)),
    Variant("fp32", ("train.precision=fp32",)),
    Variant("compiled", ("runtime.compile=true",)),
)  # fmt: skip
"""`shakespeare-fast` and variants with one change each."""

PRECISION = (
    Variant(FAST, ("train.precision=auto", "runtime.compile=true")),
    Variant(EXACT, ("train.precision=fp32", "runtime.compile=false", "runtime.keep_memory=false")),
)


class Trainer:
    """Trains a preset. tokenize and split run once; each training runs in a separate folder."""

    def __init__(self, folder: Path, preset: str, text: Path | None, settings: tuple[str, ...] = ()) -> None:
        """Prepares the data.

        Args:
            folder: An empty folder.
            preset: The name of the preset.
            text: The file for data/raw; None for a corpus that needs no files.
            settings: Settings for all runs.
        """
        self.preset, self._folder, self._settings = preset, folder, (*_ONE_THREAD, *settings)
        data = self._project()
        self._splits = data.folder / "artifacts" / "splits"
        if text:
            shutil.copy(text, data.raw)
        take_turns([data.side("the data", ["tokenize", "split"], self._settings, 1.0, 0)], 1)

    def __call__(self, variant: Variant, seed: int) -> Trained:
        """Trains a variant with a seed.

        Raises:
            SideFailedError: the train stage failed.
        """
        project = self._project()
        shutil.copytree(self._splits, project.folder / "artifacts" / "splits")
        settings = (*self._settings, f"train.seed={seed}", *variant.settings)
        side = project.side(variant.name, ["train"], settings, 1.0, 0, compiling(project.folder))
        stage = take_turns([side], 1)[variant.name].rounds[0]
        metrics = project.folder / "metrics"
        metrics_json, clock = (
            json.loads((metrics / f"{name}.json").read_text()) for name in ("train", "performance")
        )
        header, *rows = [line.split("\t") for line in (metrics / "history.tsv").read_text().splitlines()]
        history = [dict(zip(header, row, strict=True)) for row in rows]
        shutil.rmtree(project.folder)
        return Trained(
            preset=self.preset,
            variant=variant.name,
            seed=seed,
            settings=list(variant.settings),
            loss=metrics_json["val"]["loss"],
            steps=[int(row["step"]) for row in history],
            losses=[float(row["val.loss"]) for row in history],
            parameters=metrics_json["parameters"],
            step_seconds=clock["processor_seconds"],
            stage_seconds=stage.processor,
        )

    def _project(self) -> TemporaryProject:
        project = TemporaryProject(Path(tempfile.mkdtemp(dir=self._folder)))
        project.preset(self.preset)
        return project


def missing(study: Study, preset: str, variants: Iterable[Variant], seeds: int) -> list[tuple[Variant, int]]:
    """The runs that the study does not have yet: all variants with one seed, then the next seed."""
    done = {(run.variant, run.seed) for run in study.runs if run.preset == preset}
    variants = list(variants)
    return [(each, seed) for seed in range(1, seeds + 1) for each in variants if (each.name, seed) not in done]


def measure(
    study: Study,
    target: Path,
    plan: Iterable[tuple[Variant, int]],
    train: Callable[[Variant, int], Trained],
    jobs: int = 1,
) -> None:
    """Runs a plan with `jobs` runs in parallel, and writes the study into the folder `target` after each run.

    A run that fails is noted among the skipped, and tried anew the next time.
    """
    started, before = time.monotonic(), study.seconds
    with ThreadPoolExecutor(jobs) as pool:
        runs = {pool.submit(train, variant, seed): f"{variant.name}, seed {seed}" for variant, seed in plan}
        try:
            for each, name in runs.items():
                try:
                    run = each.result()
                except SideFailedError as error:
                    study.skipped[name] = str(error).splitlines()[-1]
                    click.echo(f"{name} failed: {study.skipped[name]}")
                else:
                    study.skipped.pop(name, None)
                    study.runs.append(run)
                    click.echo(
                        f"{name}: val loss {run.loss:.4f}; processor seconds: steps {run.step_seconds:.2f}, "
                        f"stage {run.stage_seconds:.2f}"
                    )
                study.seconds = before + time.monotonic() - started
                study.write(target)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def begun(subject: str, fresh: bool, folder: Path = FOLDER) -> Study:
    """The study to continue: its earlier results, with the current command and date.

    Raises:
        click.ClickException: what it has was measured on another processor, or with other versions.
    """
    study = Study(subject, command=shown_command(sys.argv[1:], "benchmarks.variants"))
    before = None if fresh else studies.read(folder, subject)
    if before:
        if (before.machine["processor"], before.versions) != (study.machine["processor"], study.versions):
            raise click.ClickException(
                f"results/{subject}.json is from another processor or other versions: use --fresh to start again"
            )
        study.runs, study.skipped, study.seconds = before.runs, before.skipped, before.seconds
    return study


def _text() -> Path | None:
    """The file tinyshakespeare.txt; None and a note if it is missing."""
    folder = os.environ.get("PIPELINE_TEST_DATA")
    path = Path(folder or "", _TEXT).resolve()
    if folder and path.exists():
        return path
    why = f"{_TEXT} is not in the folder that it names" if folder else "it names no folder"
    click.echo(f"what needs tinyshakespeare is left out: PIPELINE_TEST_DATA: {why}")
    return None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("subject", type=click.Choice(["ablation", "precision"]))
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Number of seeds per variant."
)
@click.option("--default-run", is_flag=True, help="precision: also run the default preset on its corpus.")
@click.option("--jobs", type=click.IntRange(1, 2), default=1, show_default=True, help="Number of parallel runs.")
@click.option("--fresh", is_flag=True, help="Discard earlier results.")
def main(subject: str, seeds: int, default_run: bool, jobs: int, fresh: bool) -> None:
    """Train a preset under variants, and write benchmarks/results/ and benchmarks/RESULTS.md.

    An interrupted study continues with the missing runs. PIPELINE_TEST_DATA is the folder that has
    tinyshakespeare.txt.
    """
    if default_run and subject != "precision":
        raise click.UsageError("--default-run is only for precision")
    study, text = begun(subject, fresh), _text()
    variants = ABLATION if subject == "ablation" else PRECISION
    presets: list[tuple[str, Path | None]] = []
    if text:
        presets.append(("shakespeare-fast" if subject == "ablation" else "shakespeare-char", text))
    if default_run:
        presets.append(("tiny", None))
    for preset, corpus in presets:
        plan = missing(study, preset, variants, seeds)
        click.echo(f"{preset}: {len(plan)} runs to do")
        if plan:
            with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
                measure(study, FOLDER, plan, Trainer(Path(folder), preset, corpus), jobs)
    studies.write()


if __name__ == "__main__":
    main()
