"""Keeps the default run's checkpoint in data/weights/base, where a preset's run begins with it."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.core.errors import CheckpointError, DataError
from pipeline.core.files import write_manifest
from pipeline.core.params_diff import contradictions
from pipeline.core.paths import RECORD, Paths
from pipeline.core.publication import published_folder
from pipeline.data.tokens import TOKENIZER
from pipeline.model.checkpoint import BEST, CONFIG, DIGESTS, load_tensors, verify_files, verify_weights
from pipeline.model.run_record import read_record
from pipeline.params.presets import default_values

_FILES = (BEST, CONFIG, DIGESTS, RECORD, TOKENIZER)
_FIRST = "run `pipeline preset tiny` and `dvc repro` first"
_ANY_VALUE = {"model.dropout", "split.duplicates", "tokenize.store"}
"""Params of the default run that need not be the shipped ones."""


def keep_base(paths: Paths, again: bool = False) -> str:
    """Copies what training begins with from artifacts/checkpoint to data/weights/base, whole or not at all. A base
    that is there is kept, unless it is to be copied `again`.

    Returns:
        What was done, in one line.

    Raises:
        CheckpointError: the checkpoint is missing or corrupt, or is not the default run's; or the kept base is
            corrupt.
    """
    base, shown = paths.weights / "base", paths.shown(paths.checkpoint)
    if base.exists() and not again:
        fix = f"remove it, {_FIRST}, and write the preset again"
        return f"kept     {paths.shown(base)} (step {_checked(base, fix):,}); --new-base copies {shown} again"
    if not paths.checkpoint.is_dir():
        raise CheckpointError(f"{shown} is missing, and the preset begins with the default run's: {_FIRST}")
    step = _checked(paths.checkpoint, _FIRST)
    different = _different(paths.checkpoint)
    if different:
        raise CheckpointError(
            f"{shown} is not the default run's, with which the preset begins ({different}): {_FIRST}"
        )
    with published_folder(base, paths) as folder:
        for name in _FILES:
            if (paths.checkpoint / name).is_file():  # earlier versions wrote no weights.json
                shutil.copyfile(paths.checkpoint / name, folder / name)
        write_manifest(folder)
    return f"copied   {shown} (step {step:,}) to {paths.shown(base)}"


def _checked(folder: Path, fix: str) -> int:
    """The step of a checkpoint's best weights, which are intact."""
    try:
        verify_files(folder / BEST)
        saved = load_tensors(folder / BEST, mmap=True)
        verify_weights(folder / BEST, saved)
    except (DataError, CheckpointError) as error:
        raise CheckpointError(f"{str(error).rpartition(': ')[0]}: {fix}") from None
    return int(saved["step"])


def _different(folder: Path) -> str:
    """What the checkpoint's run has otherwise than the shipped params; empty if nothing that matters."""
    shipped = {name: default_values()[name] for name in ("tokenize", "split", "model")}
    found = contradictions(read_record(folder).params, shipped)
    return ", ".join(
        f"{name}: {then} instead of {now}" for name, (then, now) in found.items() if name not in _ANY_VALUE
    )
